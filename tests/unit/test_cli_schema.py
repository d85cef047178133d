"""`advdiff schema`: where it goes, what is in it, and how a recipe comes to name it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from helpers_dists import Site

from advdiff_core.cli import environment, main
from advdiff_core.cli.editor import PLACE, found_line, schema_line

RECIPE = 'advdiff = 1\n[data]\nuse = "two-moons"\n[models.student]\nuse = "mlp"\n'
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def work(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, with the core, a broken plugin and one that ships a recipe."""
    site.dist(
        "advdiff-odd", {"advdiff.v1.attack": {"odd": "odd_cli_schema:Gone"}},
        modules={"odd_cli_schema/__init__.py": "1 / 0", "odd_cli_schema/recipes/own.toml": RECIPE},
    )  # fmt: skip
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-odd")
    environment.catalogue.cache_clear()
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    environment.catalogue.cache_clear()


def test_schema_goes_to_stdout_and_broken_plugins_to_stderr(work: Path, capsys: Capture) -> None:
    """The result can be piped; what is left out is named with its cause."""
    assert main(["schema"]) == 0
    out, err = capsys.readouterr()
    jsonschema.Draft7Validator(json.loads(out)).validate(tomllib.loads(RECIPE))
    assert err.startswith(
        "advdiff: warning left out of the schema: attack 'odd' of advdiff-odd 1.0 fails to import"
    )
    assert main(["schema", "--json"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(out)


def test_schema_of_some_plugins_leaves_out_the_others(work: Path, capsys: Capture) -> None:
    """The core is always there; a distribution that offers nothing is an error with a hint."""
    assert main(["schema", "--plugin", "advdiff-core"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["schema", "--plugin", "advdiff-od"]) == 3
    assert capsys.readouterr().err == (
        "advdiff: error[R11] --plugin: no installed distribution 'advdiff-od' offers components"
        " - did you mean 'advdiff-odd'?\n"
    )


def test_schema_is_written_and_recipes_told_of_it(work: Path, capsys: Capture) -> None:
    """`--out` makes folders and says which line a recipe needs; `new` writes that line."""
    assert main(["new", "own", "before.toml"]) == 0
    assert (work / "before.toml").read_text() == RECIPE
    assert main(["schema", "--plugin", "advdiff-core", "--out", str(PLACE)]) == 0
    assert "#:schema ./.advdiff/recipe.schema.json" in capsys.readouterr().out
    assert json.loads((work / PLACE).read_text())["title"] == "advdiff recipe"
    assert main(["new", "own"]) == 0
    (work / "deep" / "er").mkdir(parents=True)
    assert main(["new", "own", "deep/er/own.toml"]) == 0
    assert (work / "own.toml").read_text() == f"#:schema ./.advdiff/recipe.schema.json\n{RECIPE}"
    line = "#:schema ../../.advdiff/recipe.schema.json"
    assert (work / "deep" / "er" / "own.toml").read_text() == f"{line}\n{RECIPE}"
    assert main(["check", "own.toml"]) == 0


def test_schema_that_cannot_be_written_is_one_line(work: Path, capsys: Capture) -> None:
    """A file in the place of a folder; exit code of storage."""
    (work / "file").write_text("")
    assert main(["schema", "--plugin", "advdiff-core", "--out", "file/s.json"]) == 5
    message = "advdiff: error file/s.json: cannot be written: File exists - name another FILE\n"
    assert capsys.readouterr().err == message


def test_line_names_the_schema_as_seen_from_the_recipe(tmp_path: Path) -> None:
    """Relative, with ./ or ../ in front: editors take anything else for an address."""
    assert schema_line(tmp_path / "s.json", tmp_path) == "#:schema ./s.json"
    assert schema_line(tmp_path / "s.json", tmp_path / "a") == "#:schema ../s.json"
    assert found_line(tmp_path) == ""
