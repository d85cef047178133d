"""Rules that every installed component keeps, read off the classes themselves."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from advdiff_core.cli.settings_text import description, keys_of
from advdiff_core.discovery import KINDS, Catalogue, Entry, scan
from advdiff_core.recipe.schema import TABLES

PLUGINS = (Path(__file__).parents[2] / "plugins").glob("*/pyproject.toml")
OWN = {"advdiff-core", *(f"advdiff-{path.parent.name}" for path in PLUGINS)}
CATALOGUE: Catalogue = scan()
ENTRIES = [
    pytest.param(entry, id=f"{kind}-{entry.name}")
    for kind in KINDS
    for entry in CATALOGUE.of_kind(kind)
    if entry.distribution in OWN
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_components_explain_themselves(entry: Entry) -> None:
    """A component has a one-line summary of its own, and each of its keys a line of help."""
    cls = CATALOGUE.load(entry)
    summary = description(cls).split("\n")[0]
    assert summary.endswith("."), f"{entry.qualified}: the docstring does not open with a sentence"
    silent = [] if cls.variants else [key.key for key in keys_of(cls.Settings) if not key.help]
    assert silent == []


@pytest.mark.parametrize("entry", ENTRIES)
def test_components_are_final(entry: Entry) -> None:
    """A component is a concrete class and nothing that is shipped subclasses it."""
    cls = CATALOGUE.load(entry)
    assert not inspect.isabstract(cls)
    # Tests that ran before this one may have made subclasses, which live until they are collected.
    heirs = [heir for heir in cls.__subclasses__() if heir.__module__.startswith("advdiff_")]
    assert heirs == []


@pytest.mark.parametrize("name", TABLES)
def test_recipe_tables_explain_themselves(name: str) -> None:
    """Each of the recipe's own keys has a line of help."""
    assert [key.key for key in keys_of(TABLES[name].cls) if not key.help] == []
