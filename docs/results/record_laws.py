"""Count the planted mistakes that the laws notice: `python docs/results/record_laws.py PAGE.md`.

The mistakes are those of tests/mutations; a test holds the figures to at least 40 and 95 %. Here
each is also looked for with its law's words: a message that does not name the mistake is a miss.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from lab import commit

ROOT = Path(__file__).parents[2]
#: Examples that a law draws for each mistake, as in the test.
WITNESSES = 10


def main() -> None:
    """Try every mistake and write the page."""
    sys.path[:0] = [str(ROOT / "tests" / "mutations"), str(ROOT / "tests")]
    for path in sorted((ROOT / "tests" / "mutations").glob("planted_*.py")):
        importlib.import_module(path.stem)
    os.environ.pop("PLANTED_BY_AN_IMPORT", None)
    mistakes = importlib.import_module("planted").PLANTED
    Path(sys.argv[1]).write_text(page([(one, tried(one)) for one in mistakes]), encoding="utf-8")


def tried(mistake: object) -> bool:
    """Whether the law that is meant for a mistake says what it is."""
    from advdiff_core.testing import broken_laws

    broken = broken_laws(
        mistake.component, only=[mistake.law], witnesses=WITNESSES, example=mistake.example
    )
    torch.set_default_dtype(torch.float32)
    message = broken.get(mistake.law, "")
    return bool(message) and all(word in message for word in mistake.words)


def page(results: Iterable[tuple[object, bool]]) -> str:
    """The figures by kind, and what slipped through."""
    from advdiff_core.testing.collecting import kind_of

    kinds: dict[str, list[bool]] = {}
    missed = []
    for mistake, caught in results:
        kinds.setdefault(kind_of(mistake.component), []).append(caught)
        missed += [] if caught else [f"- `{mistake.component.__name__}`, for `{mistake.law}`"]
    rows = [row(kind, found) for kind, found in sorted(kinds.items())]
    whole = [one for found in kinds.values() for one in found]
    lines = [
        "# Planted mistakes that the laws notice",
        "",
        f"Written by `python docs/results/record_laws.py docs/results/laws.md` at commit "
        f"{commit()}. Noticed means that the law made for it fails with a message that names it.",
        "",
        "| kind | planted | noticed | share |",
        "| --- | --- | --- | --- |",
        *rows,
        row("all", whole),
        "",
        *(["Not noticed:", "", *missed, ""] if missed else []),
    ]
    return "\n".join(lines)


def row(kind: str, found: list[bool]) -> str:
    """One line of the table."""
    share = 100 * sum(found) / len(found)
    return f"| {kind.replace('_', ' ')} | {len(found)} | {sum(found)} | {share:.1f} % |"


if __name__ == "__main__":
    main()
