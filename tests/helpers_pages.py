"""Fenced blocks of the documentation, and what their annotations ask for.

A comment right above a fence annotates the block; without one, a block is run by what it is:

    <!-- test: file=recipe.toml -->      write it to this file, in the folder the page runs in
    <!-- test: skip=why it is not run -->
    <!-- test: fails=2 -->               its last command ends with this exit code
    <!-- test: hidden                    commands that readers need not see
    $ advdiff new advdiff-robustadv:digits
    -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

ROOT = Path(__file__).parents[1]
DIRECTIVES = ("file", "skip", "fails")
FENCE = re.compile(
    r"(?:^<!-- test: (?P<note>[^\n]*) -->\n)?^```(?P<language>[\w{}-]*)\n(?P<text>.*?)^```$"
    r"|^<!-- test: hidden\n(?P<hidden>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)
NOTE = re.compile(r"^\s*<!-- test:", re.MULTILINE)
SHELL = ("console", "bash", "sh")


@frozen(kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file.
        line: Line of its first text, 1-based.
        language: Language of the fence; "console" for hidden commands.
        text: What is in it.
        notes: Directives of the annotation.
    """

    page: Path
    line: int
    language: str
    text: str
    notes: dict[str, str] = field(factory=dict)

    @property
    def where(self) -> str:
        """`page:line`."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@frozen
class Command:
    """A command of a console block, and the output shown below it.

    Attributes:
        text: The command without its comment.
        shown: Lines of output; `...` stands for anything.
    """

    text: str
    shown: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Its words, as a shell splits them."""
        return shlex.split(self.text, comments=True)


def is_record(page: Path) -> bool:
    """True for what a script wrote about a run of its own: to repeat it is to run that script."""
    return page.is_relative_to(ROOT / "docs") and page.parent.name in ("benchmarks", "results")


def pages() -> list[Path]:
    """README and every page but those made from the components; records among them."""
    made = {"reference", "_build"}
    docs = [path for path in ROOT.glob("docs/**/*.md") if not made & set(path.parts)]
    readmes = [*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/**/README.md")]
    return [ROOT / "README.md", *sorted(docs), *sorted(readmes)]


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order.

    Raises:
        ValueError: For an annotation that is unknown, or stands above no block.
    """
    text = page.read_text(encoding="utf-8") if text is None else text
    found, annotated = [], 0
    for match in FENCE.finditer(text):
        hidden, note = match["hidden"], match["note"]
        annotated += hidden is not None or note is not None
        place = match.start("text") if hidden is None else match.start("hidden")
        found.append(
            Block(
                page=page, line=text.count("\n", 0, place) + 1,
                language=match["language"] if hidden is None else "console",
                text=match["text"] if hidden is None else hidden, notes=_notes(note, page),
            )
        )  # fmt: skip
    if annotated != len(NOTE.findall(text)):
        message = f"{page.name}: an annotation stands above no block, or is misspelt"
        raise ValueError(message)
    return found


def _notes(note: str | None, page: Path) -> dict[str, str]:
    if note is None:
        return {}
    name, equals, value = note.partition("=")
    if name not in DIRECTIVES or not equals or not value.strip():
        message = f"{page.name}: annotation {note!r}, wanted {' or '.join(DIRECTIVES)} = a value"
        raise ValueError(message)
    return {name: value.strip()}


def commands_of(block: Block) -> Iterator[Command]:
    """The commands of a console block: lines after `$ `, continued by a backslash."""
    text, shown = "", []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            if text:
                yield Command(text, tuple(shown))
            text, shown = _without_comment(line[2:]), []
        elif text:
            shown.append(line.rstrip())
    if text:
        yield Command(text, tuple(shown))


def _without_comment(line: str) -> str:
    return re.sub(r"\s+#\s.*$", "", line).strip()


def shows(shown: tuple[str, ...], printed: str) -> bool:
    """Whether output is what a page shows; `...` in a line, or for whole lines, is anything.

    A page that shows nothing claims nothing.
    """
    wanted = "\n".join(shown).strip()
    if not wanted:
        return True
    lines = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    pattern = re.escape(wanted).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, lines, re.DOTALL) is not None
