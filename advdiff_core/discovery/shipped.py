"""Recipes that installed distributions ship, found without importing them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

from advdiff_core.discovery.kinds import canonical_distribution

__all__ = ["editable_project", "shipped_recipes"]

_SUFFIXES = (".recipe.toml", ".toml")


def shipped_recipes(distribution: str) -> dict[str, Path] | None:
    """The recipes of a distribution by name, sorted; None if it is not installed.

    A recipe `base` is a file `recipes/base.toml`, `recipes/base.recipe.toml` or
    `base.recipe.toml` in the distribution's import package, or in `recipes/` of its project
    folder if it is installed editable.

    Args:
        distribution: Name of the distribution, in any spelling.
    """
    wanted = canonical_distribution(distribution)
    try:
        installed = metadata.distribution(wanted)
    except (metadata.PackageNotFoundError, ValueError):
        return None
    found: dict[str, Path] = {}
    for folder in _folders(installed, wanted):
        for path in sorted([*folder.glob("recipes/*.toml"), *folder.glob("*.recipe.toml")]):
            found.setdefault(_name(path), path)
    return dict(sorted(found.items()))


def _name(path: Path) -> str:
    suffix = next(one for one in _SUFFIXES if path.name.endswith(one))
    return path.name.removesuffix(suffix)


def _folders(installed: metadata.Distribution, name: str) -> Iterator[Path]:
    """Import packages of a distribution, then its project folder if it is editable."""
    for package in _packages(installed, name):
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError, AttributeError):
            continue
        for place in (spec.submodule_search_locations or ()) if spec else ():
            yield Path(place)
    project = editable_project(installed)
    if project is not None:
        yield project


def _packages(installed: metadata.Distribution, name: str) -> list[str]:
    """Top-level import packages: those it lists, those its entry points name, and its own name."""
    files = [path.parts[0] for path in installed.files or () if path.suffix == ".py"]
    values = [entry.module.split(".")[0] for entry in _entry_points(installed)]
    listed = (installed.read_text("top_level.txt") or "").split()
    names = [*listed, *files, *values, name.replace("-", "_")]
    return [one for one in dict.fromkeys(names) if one.isidentifier()]


def _entry_points(installed: metadata.Distribution) -> list[metadata.EntryPoint]:
    try:
        points = installed.entry_points
        return [one for one in points if one.group.startswith("advdiff.")]
    except (ValueError, AttributeError, TypeError):
        return []


def editable_project(installed: metadata.Distribution) -> Path | None:
    """The source folder of an editable installation (PEP 610)."""
    try:
        record = json.loads(installed.read_text("direct_url.json") or "{}")
        url = urlparse(str(record["url"]))
        editable = record["dir_info"]["editable"] is True
    except (ValueError, KeyError, TypeError):
        return None
    return Path(unquote(url.path)) if editable and url.scheme == "file" else None
