"""What README and docs claim: recipes check, commands exist, files are there, plugins work."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from advdiff_core.cli.app import PROGRAM, app
from advdiff_core.recipe import check_recipe

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list[object]:
    """Fenced blocks of the pages as test parameters (page, text), named by page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["language"] in languages:
                line = text.count("\n", 0, match.start()) + 2
                name = f"{page.relative_to(ROOT)}:{line}"
                found.append(pytest.param(match["text"], id=name))
    return found


def commands(text: str) -> list[list[str]]:
    """Words of every `$ advdiff ...` line."""
    lines = [line.split("#")[0] for line in text.splitlines()]
    return [line.split()[2:] for line in lines if re.match(rf"\$ {PROGRAM} ", line)]


@pytest.mark.parametrize("text", blocks("toml"))
def test_toml_blocks_are_toml(text: str) -> None:
    """Every TOML block parses."""
    assert tomllib.loads(text)


@pytest.mark.parametrize("text", blocks("toml"))
def test_recipes_have_no_fault(text: str, tmp_path: Path) -> None:
    """Every block that is a whole recipe (it has data and a model) passes `advdiff check`."""
    tables = tomllib.loads(text)
    if not {"data", "models"} <= set(tables):
        return
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    faults = check_recipe(recipe, ())
    assert [fault.as_line() for fault in faults] == []


@pytest.mark.parametrize("text", blocks("console", "bash", "sh"))
def test_commands_exist(text: str) -> None:
    """Every `advdiff VERB --option` on a page is one of the command line's."""
    context = click.Context(app, info_name=PROGRAM)
    for words in commands(text):
        if words[0].startswith("-"):
            continue
        verb = app.get_command(context, words[0])
        assert verb is not None, words[0]
        known = {option for param in verb.params for option in (*param.opts, *param.secondary_opts)}
        options = {word.split("=")[0] for word in words[1:] if re.match("--?[a-z]", word)}
        assert options <= known | {"--help", "-h"}, words


@pytest.mark.parametrize("text", blocks("console", "bash", "sh"))
def test_named_files_exist(text: str) -> None:
    """Scripts and recipes that commands name are in the repository."""
    named = re.findall(r"(?:^|\s)((?:examples|tests|plugins|docs)/[\w./-]+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_verbs_named_in_prose_exist() -> None:
    """Every `advdiff VERB` in running text is a verb."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    verbs = set(re.findall(rf"`{PROGRAM} ([a-z][a-z-]*)", text))
    context = click.Context(app, info_name=PROGRAM)
    assert {verb for verb in verbs if app.get_command(context, verb) is None} == set()


def test_components_named_in_the_readme_exist() -> None:
    """Names the README lists after "Core:" are entry points of the core."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = text.split("- **Core**:")[1].split("\n- ")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    offered = {name for group in project["entry-points"].values() for name in group}
    assert set(re.findall(r"`([^`]+)`", listed)) <= offered


def test_plugin_of_the_guide_computes_a_loss() -> None:
    """The class in docs/plugins.md is a loss term that can be built and declares its queries."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    source = next(match["text"] for match in BLOCK.finditer(text) if match["language"] == "python")
    script = source + (
        "\nterm = Cubic(Cubic.Settings(), Build(path='terms.cubic'))"
        "\nassert [type(query).__name__ for query in term.needs] == ['EpsHat', 'View']"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
