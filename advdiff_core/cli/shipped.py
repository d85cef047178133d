"""Recipes that come with installed distributions, and copies of them that work anywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from attrs import frozen

from advdiff_core.cli.environment import catalogue
from advdiff_core.discovery.shipped import shipped_recipes as recipes_of
from advdiff_core.errors import DataError, UsageError, escape, nearest
from advdiff_core.recipe.borrowed import borrowed_metrics

__all__ = ["Shipped", "copy_text", "find_shipped", "metrics_of", "shipped_recipes"]


@frozen(kw_only=True)
class Shipped:
    """A recipe that a distribution ships.

    Attributes:
        distribution: Who ships it.
        name: Its name there.
        path: The file.
    """

    distribution: str
    name: str
    path: Path

    @property
    def reference(self) -> str:
        """`dist:name`, as `extends` and `advdiff new` take it."""
        return f"{self.distribution}:{self.name}"

    @property
    def summary(self) -> str:
        """The first comment of the file."""
        try:
            first = self.path.read_text(encoding="utf-8-sig").lstrip().partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            return "cannot be read"
        return escape(first.lstrip("# ").strip()) if first.startswith("#") else ""


def shipped_recipes() -> list[Shipped]:
    """The recipes of all installed and allowed distributions, sorted."""
    return [
        Shipped(distribution=distribution, name=name, path=path)
        for distribution in sorted(catalogue().distributions())
        if catalogue().allows(distribution)
        for name, path in (recipes_of(distribution) or {}).items()
    ]


def find_shipped(reference: str) -> Shipped:
    """The recipe that `name` or `dist:name` means.

    Raises:
        UsageError: If there is none, or several have the name.
    """
    everything = shipped_recipes()
    found = [one for one in everything if reference in (one.name, one.reference)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = " or ".join(one.reference for one in found)
        message = f"{escape(reference)!r} is the name of {len(found)} recipes"
        raise UsageError(message, where="NAME", fix=f"write {listed}")
    choices = [text for one in everything for text in (one.name, one.reference)]
    near = nearest(reference, choices)
    hint = f"did you mean {near!r}?" if near else "see 'advdiff new' for all"
    raise UsageError(
        f"no installed plugin ships a recipe {escape(reference)!r}", where="NAME", fix=hint
    )


def metrics_of(reference: str) -> str:
    """The metrics of a recipe, a file or `dist:name`, as an override `key=value`.

    Raises:
        UsageError: If there is no such recipe.
        RecipeError: If it cannot be read or names no metrics.
    """
    path = Path(reference)
    if not path.is_file():
        path = find_shipped(reference).path
    return borrowed_metrics(path, catalogue())


def copy_text(shipped: Shipped) -> str:
    """The recipe's text; files it extends are named by their distribution, so that it may move.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        text = shipped.path.read_text(encoding="utf-8-sig")
        extends = tomllib.loads(text).get("extends", [])
    except (OSError, ValueError) as error:
        fix = f"reinstall {shipped.distribution}"
        raise DataError(f"cannot be read: {error}", where=str(shipped.path), fix=fix) from error
    for base in [extends] if isinstance(extends, str) else extends:
        if isinstance(base, str) and ":" not in base:
            name = Path(base).name.removesuffix(".toml").removesuffix(".recipe")
            quoted = re.compile(rf"""(['"]){re.escape(base)}\1""")
            text = quoted.sub(f'"{shipped.distribution}:{name}"', text, count=1)
    return text
