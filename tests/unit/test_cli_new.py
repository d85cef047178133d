"""`advdiff new`: recipes that plugins ship, copied so that they work anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_dists import Site

from advdiff_core.cli import environment, main

OWN = '# A run for one\'s own eyes.\nextends = "base.toml"\n[run]\nseed = 1\n'
BASE = "advdiff = 1\n"


@pytest.fixture
def shop(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two distributions that ship recipes; tests run in an empty folder."""
    for name in ("one", "two"):
        package = site.folder / f"odd_{name}"
        (package / "recipes").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('never imported')")
        (package / "recipes" / "base.toml").write_text(BASE)
        site.dist(f"advdiff-{name}", {"advdiff.v1.attack": {name: f"odd_{name}:Attack"}})
    (site.folder / "odd_one" / "recipes" / "own.toml").write_text(OWN)
    monkeypatch.setenv("ADVDIFF_PLUGINS", "advdiff-one,advdiff-two")
    environment.catalogue.cache_clear()
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    environment.catalogue.cache_clear()


def test_new_lists_what_there_is(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reference and first comment, of allowed distributions alone, without importing them."""
    assert main(["new", "--json"]) == 0
    rows = {row["recipe"]: row["summary"] for row in json.loads(capsys.readouterr().out)}
    assert rows["advdiff-one:own"] == "A run for one's own eyes."
    assert {"advdiff-one:base", "advdiff-two:base"} <= set(rows)
    assert not any(name.startswith("advdiff-robustadv") for name in rows)
    assert main(["new"]) == 0
    assert "advdiff-one:own   A run for one's own eyes." in capsys.readouterr().out


def test_a_shipped_recipe_is_read_where_it_is(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its reference, wherever a recipe is asked for; a file of that name goes first."""
    assert main(["check", "advdiff-one:own"]) == 2
    assert "the table [data] is missing" in capsys.readouterr().err
    assert main(["check", "advdiff-one:onw"]) == 2
    told = capsys.readouterr().err
    assert "no installed plugin ships a recipe 'advdiff-one:onw' - did you mean" in told
    (shop / "advdiff-one:own").write_text("advdiff = 1\nmoddels = 3\n")
    assert main(["check", "advdiff-one:own"]) == 2
    assert "moddels" in capsys.readouterr().err


def test_new_copies_a_recipe_that_still_finds_its_base(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it extends is named by distribution; `advdiff show` reads the copy."""
    assert main(["new", "own"]) == 0
    assert (shop / "own.toml").read_text() == OWN.replace("base.toml", "advdiff-one:base")
    assert capsys.readouterr().out.splitlines() == [
        "own.toml: copied from advdiff-one:own",
        "next: advdiff check own.toml && advdiff train own.toml",
    ]
    assert main(["show", "own.toml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"advdiff": 1, "run": {"seed": 1}}


def test_new_asks_which_of_two(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that two distributions ship needs the distribution."""
    assert main(["new", "base"]) == 2
    assert capsys.readouterr().err == (
        "advdiff: error NAME: 'base' is the name of 2 recipes - "
        "write advdiff-one:base or advdiff-two:base\n"
    )
    assert main(["new", "advdiff-two:base", "mine.toml"]) == 0
    assert (shop / "mine.toml").read_text() == BASE


def test_new_corrects_a_name(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest recipe is offered."""
    assert main(["new", "owm"]) == 2
    assert "did you mean 'own'?" in capsys.readouterr().err


def test_new_never_overwrites_unasked(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of that name stays as it is, but for --force."""
    (shop / "own.toml").write_text("mine")
    assert main(["new", "own"]) == 2
    assert (shop / "own.toml").read_text() == "mine"
    assert "name another FILE, or use --force" in capsys.readouterr().err
    assert main(["new", "own", "--force"]) == 0
    assert (shop / "own.toml").read_text() != "mine"
    assert main(["new", "own", "missing/folder/own.toml"]) == 5
