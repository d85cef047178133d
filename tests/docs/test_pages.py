"""What README and docs claim in words: commands exist, files are there, components are offered."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import click
import pytest
from helpers_pages import ROOT, SHELL, blocks_of, commands_of, is_record, pages

from advdiff_core.cli.app import PROGRAM, app

PAGES = pages()


def blocks(*languages: str) -> list[object]:
    """Blocks of the pages as test parameters, named by page and line."""
    return [
        pytest.param(block, id=block.where)
        for page in PAGES
        for block in blocks_of(page)
        if block.language in languages
    ]


@pytest.mark.parametrize("block", blocks("toml"))
def test_toml_blocks_are_toml(block) -> None:
    """Every TOML block parses, also where it is not run."""
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", blocks(*SHELL))
def test_commands_exist(block) -> None:
    """Every `advdiff VERB --option` on a page is one of the command line's."""
    context = click.Context(app, info_name=PROGRAM)
    for command in commands_of(block):
        program, *words = command.words
        if program != PROGRAM or words[0].startswith("-"):
            continue
        verb = app.get_command(context, words[0])
        assert verb is not None, words[0]
        known = {option for param in verb.params for option in (*param.opts, *param.secondary_opts)}
        options = {word.split("=")[0] for word in words[1:] if re.match("--?[a-z]", word)}
        assert options <= known | {"--help", "-h"}, words


@pytest.mark.parametrize("block", blocks(*SHELL))
def test_named_files_exist(block) -> None:
    """Scripts and recipes that commands name are in the repository."""
    if is_record(block.page):
        pytest.skip("a record names files where it was made")
    named = re.findall(r"(?:^|\s)((?:examples|tests|plugins|docs)/[\w./-]+)", block.text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_verbs_named_in_prose_exist() -> None:
    """Every `advdiff VERB` in running text is a verb."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    verbs = set(re.findall(rf"`{PROGRAM} ([a-z][a-z-]*)", text))
    context = click.Context(app, info_name=PROGRAM)
    assert {verb for verb in verbs if app.get_command(context, verb) is None} == set()


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links to files, also from README, which Sphinx does not read."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+\.\w+)(?:#[\w-]+)?\)", page.read_text("utf-8")):
            made = "reference" in target.split("/") or "_build" in target.split("/")
            if not made and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_components_named_in_the_readme_exist() -> None:
    """Names the README lists after "Core:" are entry points of the core."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.split("- **Core**:")[1].split("\n- ")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = {name for group in project["entry-points"].values() for name in group}
    assert set(re.findall(r"`([^`]+)`", listed)) <= offered


def test_plugin_of_the_guide_computes_a_loss() -> None:
    """The class in docs/plugins.md is a loss term that can be built and declares its queries."""
    page = ROOT / "docs" / "plugins.md"
    source = next(block.text for block in blocks_of(page) if block.language == "python")
    script = source + (
        "\nterm = Cubic(Cubic.Settings(), Build(path='terms.cubic'))"
        "\nassert [type(query).__name__ for query in term.needs] == ['EpsHat', 'View']"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
