"""Every command and snippet of README and docs runs, in the order of its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_pages import (
    ROOT,
    SHELL,
    Block,
    Command,
    blocks_of,
    commands_of,
    is_record,
    pages,
    shows,
)
from helpers_tours import Server, Tour, clear, left_out, not_run

RUN = (*SHELL, "toml", "python")


def runnable(page: Path) -> list[Block]:
    """Blocks of a page that do something; records of runs do nothing."""
    return [] if is_record(page) else [block for block in blocks_of(page) if block.language in RUN]


def name(page: Path) -> str:
    """A page as the test's name shows it."""
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Runs command lines of all pages."""
    made = Server()
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", [one for one in pages() if runnable(one)], ids=name)
def test_page_can_be_followed(page: Path, tmp_path: Path, server: Server) -> None:
    """Block by block, with trainings cut to 32 images, nothing fails and the output is as shown."""
    tour = Tour(page, tmp_path, server)
    for block in runnable(page):
        tour.run(block)
    clear(tmp_path)


def test_what_is_not_run_is_still_there() -> None:
    """Every entry of the list matches a command of a page, and says why."""
    blocks = [block for page in pages() for block in blocks_of(page)]
    commands = [one for block in blocks if block.language in SHELL for one in commands_of(block)]
    assert set(not_run()) == {left_out(one) for one in commands} - {None}
    reasons = [*not_run().values(), *(b.notes["skip"] for b in blocks if "skip" in b.notes)]
    assert [reason for reason in reasons if len(reason.split()) < 3] == []


def test_records_name_the_script_that_wrote_them() -> None:
    """Nothing escapes the tests by lying in their folder."""
    records = [page for page in pages() if is_record(page)]
    assert len(records) >= 4
    for page in records:
        wrote = re.search(
            r"^Written by `(?:python (?:-m )?)?([\w./]+)", page.read_text("utf-8"), re.M
        )
        assert wrote, page
        path = wrote[1] if wrote[1].endswith(".py") else wrote[1].replace(".", "/")
        assert (ROOT / path).exists()


PAGE = ROOT / "docs" / "page.md"


def test_blocks_know_their_annotation_and_line() -> None:
    """Also hidden commands, which come where they stand."""
    text = (
        "# T\n\n<!-- test: file=a.toml -->\n```toml\nx = 1\n```\n\n"
        "<!-- test: hidden\n$ advdiff plugins\n-->\n\n"
        "<!-- test: fails=3 -->\n```console\n$ cd a   # go\nout\n$ b \\\n  c\n```\n"
    )
    toml, hidden, console = blocks_of(PAGE, text)
    assert (hidden.notes, console.notes) == ({}, {"fails": "3"})
    assert (toml.notes, toml.text, toml.where) == ({"file": "a.toml"}, "x = 1\n", "docs/page.md:5")
    assert list(commands_of(hidden)) == [Command("advdiff plugins")]
    assert list(commands_of(console)) == [Command("cd a", ("out",)), Command("b    c")]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- test: file=a.toml -->\n\n```toml\nx = 1\n```\n",
        "<!-- test: flie=a.toml -->\n```toml\nx = 1\n```\n",
        "<!-- test: skip= -->\n```toml\nx = 1\n```\n",
        "  <!-- test: skip=no reason at all -->\n```toml\nx = 1\n```\n",
    ],
)
def test_annotations_that_annotate_nothing_are_refused(text: str) -> None:
    """Apart from its block, misspelt, empty or indented."""
    with pytest.raises(ValueError, match=r"page\.md: an?"):
        blocks_of(PAGE, text)


def test_output_is_compared_as_shown() -> None:
    """`...` is anything; showing nothing claims nothing."""
    assert shows((), "anything")
    assert shows(("a  1", "...", "z ... y"), "a  1\nb\nc\nz and y \n")
    assert not shows(("a  1",), "a  2")
    assert not shows(("a", "..."), "b\na\nc")


@pytest.mark.parametrize(
    ("language", "text", "notes", "message"),
    [
        ("console", "$ advdiff check nosuch.toml\n", {}, r"page\.md:1: advdiff check.*exit 2"),
        ("console", "$ advdiff --version\n", {"fails": "2"}, "exit 0"),
        ("console", "$ advdiff --version\nadvdiff 99\n", {}, "prints"),
        ("console", "$ ls nosuch\n", {}, "exit 2"),
        ("toml", '[run]\nbacth = 3\n', {}, r'did you mean "?.?batch'),
        ("toml", '[data]\nuse = "digist"\n[models.student]\nuse = "unet"\n', {}, "digits"),
        ("python", "raise ValueError('planted')\n", {}, "planted"),
    ],
)  # fmt: skip
def test_a_page_that_is_wrong_is_noticed(
    language: str, text: str, notes: dict[str, str], message: str, tmp_path: Path, server: Server
) -> None:
    """A command that fails or prints something else, a recipe with a fault, code that raises."""
    block = Block(page=PAGE, line=1, language=language, text=text, notes=notes)
    with pytest.raises(AssertionError, match=rf"(?s){message}"):
        Tour(PAGE, tmp_path, server).run(block)
