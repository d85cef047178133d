"""The reference has a place for everything that is installed from this repository."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from helpers_pages import ROOT

from advdiff_core.cli.settings_text import keys_of
from advdiff_core.cli.shipped import shipped_recipes
from advdiff_core.discovery import Catalogue, scan
from advdiff_core.recipe import schema

pytest.importorskip("sphinx", reason="the documentation's tools are not installed")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    """What is installed."""
    return scan()


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_reference.py."""
    path = ROOT / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(generator: ModuleType) -> dict[str, str]:
    """Every page by name."""
    return dict(generator.all_pages())


def test_every_component_and_listener_has_a_section(
    generator: ModuleType, pages: dict[str, str], catalogue: Catalogue
) -> None:
    """On the page of its kind, with its distribution; a plugin that comes needs no change here."""
    own = [one for one in catalogue.entries if one.distribution in generator.OWN and not one.error]
    assert {one.distribution for one in own} >= {"advdiff-core", "advdiff-robustadv"}
    missing = [
        f"{one.kind}:{one.name}"
        for one in own
        if f"\n## {one.name}\n\nFrom `{one.distribution}`." not in pages.get(one.kind, "")
    ]
    assert missing == []


def test_every_key_of_a_component_is_in_its_table(
    pages: dict[str, str], catalogue: Catalogue
) -> None:
    """Name, type, default and bounds, as `advdiff explain` prints them."""
    cls = catalogue.load(catalogue.find("perturbation", "ray-fgsm"))
    section = pages["perturbation"].split("\n## ray-fgsm\n")[1].split("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{key.key}`" for key in keys_of(cls.Settings)]


def test_every_table_and_shipped_recipe_is_listed(
    generator: ModuleType, pages: dict[str, str]
) -> None:
    """And every page is in the table of contents."""
    for name, table in schema.TABLES.items():
        assert f"\n## {name}{'.&lt;name&gt;' if table.named else ''}\n" in pages["recipe"]
    for one in shipped_recipes():
        if one.distribution in generator.OWN:
            assert f"| `{one.reference}` | " in pages["shipped"]
    listed = pages["index"].split(":maxdepth: 2\n")[1].split("```")[0].split()
    assert sorted(listed) == sorted(set(pages) - {"index"})
