"""Loads the components of a plugin and takes first steps with its recipes, in a process of its own.

    python -m advdiff_core.kit.worker ANSWERS DISTRIBUTION

appends one JSON object a line to the file ANSWERS, so that what a plugin prints, or how it ends the
process, spoils none.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs

from advdiff_core.discovery import HOOKS, Catalogue, Entry, scan
from advdiff_core.discovery.kinds import canonical, canonical_distribution
from advdiff_core.discovery.loading import isolated
from advdiff_core.discovery.shipped import shipped_recipes
from advdiff_core.errors import AdvdiffError, DataError, PluginError, RecipeError, escape
from advdiff_core.hooks.manager import Hooks
from advdiff_core.kit.findings import Finding, bad, note, ok
from advdiff_core.recipe import Recipe, load_recipe

__all__ = ["main"]

Tell = Callable[[dict[str, Any]], None]


def main(arguments: list[str]) -> None:
    """Examine a distribution on Python's path.

    Args:
        arguments: File to append answers to, and name of the distribution.
    """
    file, name = Path(arguments[0]), arguments[1]

    def tell(answer: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(answer) + "\n")

    catalogue = scan(environ={})
    own = [e for e in catalogue.entries if canonical_distribution(e.distribution) == name]
    for entry in own:
        if not entry.error:
            for finding in _component(entry, catalogue):
                tell({"finding": attrs.asdict(finding)})
    _recipes(name, own, catalogue, tell)
    tell({"done": True})


def _component(entry: Entry, catalogue: Catalogue) -> Iterator[Finding]:
    """Whether a component can be imported, is what it says, and can be told from others."""
    what = f"{entry.kind} {entry.name!r}"
    if entry.kind == HOOKS:
        yield from _listener(entry, what)
        return
    try:
        cls = catalogue.load(entry)
    except PluginError as error:
        yield bad("components", error.message, error.fix)
        return
    faults = [*_silent(cls, what), *_hidden(entry, catalogue, what)]
    yield from faults
    if not faults:
        yield ok("components", f"{what}: {_summary(cls)}")


def _listener(entry: Entry, what: str) -> Iterator[Finding]:
    said: list[str] = []
    hooks = Hooks.load([entry], warn=said.append, guard=isolated)
    if said or not hooks.listeners:
        found = said[0].removeprefix("advdiff: warning: ") if said else f"{what} cannot be loaded"
        yield bad("components", found, "a listener is built without arguments")
    else:
        yield ok("components", f"{what}: {_summary(pkgutil.resolve_name(entry.value))}")


def _summary(cls: type[Any]) -> str:
    lines = (vars(cls).get("__doc__") or "").strip().splitlines()
    return escape(lines[0].strip()) if lines else ""


def _silent(cls: type[Any], what: str) -> Iterator[Finding]:
    """What `advdiff explain` could not say."""
    if not _summary(cls).endswith("."):
        fix = "begin its docstring with a sentence on the first line; advdiff plugins shows it"
        yield bad("components", f"{what}: {cls.__name__} does not say what it is", fix)
    if cls.variants:
        return
    for one in attrs.fields(cls.Settings):
        if one.init and not one.metadata.get("help"):
            fix = 'write setting(..., help="...")'
            yield bad("components", f"{what}: key {one.name!r} has no help", fix)


def _hidden(entry: Entry, catalogue: Catalogue, what: str) -> Iterator[Finding]:
    for other in catalogue.of_kind(entry.kind):
        if other.qualified == entry.qualified or canonical(other.name) != canonical(entry.name):
            continue
        found = f"{what} is also offered by {other.owner}"
        if other.is_core:
            fix = f'choose another name, or let recipes write use = "{entry.qualified}"'
            yield bad("components", f"{found}, which recipes get", fix)
        else:
            yield note("components", found, f'recipes have to write use = "{entry.qualified}"')


def _recipes(name: str, own: list[Entry], catalogue: Catalogue, tell: Tell) -> None:
    """Check every recipe, take first steps with it, and say which components none of them uses."""
    used: set[tuple[str, str]] = set()
    recipes = shipped_recipes(name) or {}
    for title, path in recipes.items():
        try:
            recipe = load_recipe(path, (), catalogue)
        except RecipeError as error:
            for fault in error.faults:
                # The file lies in a folder that is gone afterwards.
                where = attrs.evolve(fault, file=Path(fault.file).name).where()
                found = f"{where}: {fault.message}"
                tell({"finding": attrs.asdict(bad("recipes", found, fault.fix or "mend it"))})
            continue
        used |= _components_of(recipe, name)
        _first_steps(title, path, tell)
    _unused(own, used, recipes, tell)


def _components_of(recipe: Recipe, name: str) -> set[tuple[str, str]]:
    return {
        (spec.kind, spec.use.removeprefix(f"{spec.distribution}:").partition(":")[0])
        for spec in recipe.specs()
        if canonical_distribution(spec.distribution) == name
    }


def _first_steps(title: str, path: Path, tell: Tell) -> None:
    from advdiff_core.engine.golden import first_steps

    see = f"see: advdiff train recipes/{path.name}"
    try:
        steps = first_steps(path)
    except DataError as error:
        finding = note("recipes", f"{title}: checked, but not tried: {error.message}", error.fix)
    except AdvdiffError as error:
        where = f"{error.where}: " if error.where else ""
        finding = bad("recipes", f"{title}: {where}{error.message}", error.fix or see)
    except Exception as error:
        cause = f"{type(error).__name__}: {escape(error)}"
        finding = bad("recipes", f"{title}: the first steps end with {cause}", see)
    else:
        tell({"golden": title, "steps": steps})
        finding = ok("recipes", f"{title}: checked, and its first steps taken")
    tell({"finding": attrs.asdict(finding)})


def _unused(
    own: list[Entry], used: set[tuple[str, str]], recipes: dict[str, Path], tell: Tell
) -> None:
    idle = [e for e in own if e.kind != HOOKS and not e.error and (e.kind, e.name) not in used]
    if idle:
        listed = ", ".join(f"{entry.kind} {entry.name!r}" for entry in idle)
        some = "no recipe comes with it" if not recipes else f"no recipe uses {listed}"
        fix = (
            "add one to the folder recipes of its package: users copy it, and its numbers are kept"
        )
        tell({"finding": attrs.asdict(note("recipes", some, fix))})


if __name__ == "__main__":
    main(sys.argv[1:])
