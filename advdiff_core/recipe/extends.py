"""`extends`: recipes a recipe builds on, from its own folder or from an installed distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import field, frozen

from advdiff_core.discovery import Catalogue
from advdiff_core.discovery.kinds import canonical_distribution
from advdiff_core.discovery.shipped import shipped_recipes
from advdiff_core.errors import Fault, RecipeError, escape, nearest
from advdiff_core.recipe.layers import Layer, merge, place_of
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.read import Document, read_file

__all__ = ["with_bases"]

#: Most recipes one recipe may be built from; a list of lists grows fast.
MAX_RECIPES = 64


@frozen
class _Chain:
    """Where in the tree of recipes a document is.

    Attributes:
        root: Folder that files may be taken from.
        names: Names of the recipes from the first one to this, for messages.
        paths: The same, resolved; a path met twice is a loop.
        budget: Paths read so far, shared by the whole tree.
    """

    root: Path
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    budget: list[Path] = field(factory=list)


def with_bases(document: Document, catalogue: Catalogue) -> Layer:
    """The document merged onto every recipe it extends, the last one named on top.

    Raises:
        RecipeError: R12 for a loop, a missing base or a path out of the recipe's folder; R01,
            R02, R05 for a base that cannot be read; all of them at once.
    """
    start = (document.path or Path.cwd() / "recipe.toml").parent.resolve()
    paths = (document.path,) if document.path else ()
    faults: list[Fault] = []
    layer = _build(document, _Chain(start, (document.file,), paths), catalogue, faults)
    if faults:
        raise RecipeError(faults)
    return layer


def _build(document: Document, chain: _Chain, catalogue: Catalogue, faults: list[Fault]) -> Layer:
    own = Layer.of(document)
    wanted = own.data.get("extends", [])
    own = Layer({k: v for k, v in own.data.items() if k != "extends"}, own.places)
    result = Layer({})
    for key, name in _listed(wanted, own, faults):
        try:
            base, below = _open(name, chain, catalogue)
        except RecipeError as error:
            faults += [_located(fault, own, key) for fault in error.faults]
            continue
        layer = _build(base, below, catalogue, faults)
        layer.data.pop("lock", None)
        result = merge(result, layer)
    return merge(result, own)


def _listed(wanted: Any, own: Layer, faults: list[Fault]) -> list[tuple[Key, str]]:
    """The names in `extends`, each with its key."""
    if isinstance(wanted, str):
        return [(("extends",), wanted)]
    named: list[tuple[Key, str]] = []
    for position, name in enumerate(wanted if isinstance(wanted, list) else [wanted]):
        key: Key = ("extends", position) if isinstance(wanted, list) else ("extends",)
        if isinstance(name, str):
            named.append((key, name))
        else:
            message = f"found {escape(repr(name), limit=40)}, wanted a file or dist:name"
            faults.append(_located(Fault(code="R07", key="", message=message), own, key))
    return named


def _located(fault: Fault, own: Layer, key: Key) -> Fault:
    """A fault of this `extends`; faults inside the base keep their own place."""
    if fault.file:
        return fault
    place = place_of(own.places, key)
    return Fault(
        code=fault.code, key="extends", message=fault.message, fix=fault.fix,
        file=place.file, line=place.line,
    )  # fmt: skip


def _refuse(message: str, fix: str = "", code: str = "R12") -> RecipeError:
    return RecipeError([Fault(code=code, key="", message=message, fix=fix)])


def _open(name: str, chain: _Chain, catalogue: Catalogue) -> tuple[Document, _Chain]:
    """Read one base and step into it."""
    distribution, colon, recipe = name.partition(":")
    path = _shipped(distribution, recipe, catalogue) if colon else _beside(name, chain)
    names = (*chain.names, name)
    if path in chain.paths:
        message = f"recipes extend each other in a circle: {escape(' -> '.join(names), limit=400)}"
        raise _refuse(message, "take one of them out")
    if len(chain.budget) >= MAX_RECIPES:
        raise _refuse(f"more than {MAX_RECIPES} recipes are built on", "extend fewer")
    chain.budget.append(path)
    root = path.parent if colon else chain.root
    shown = str(path) if colon else str(Path(chain.names[-1]).parent / name)
    document = read_file(path, shown)
    return document, _Chain(root, names, (*chain.paths, path), chain.budget)


def _beside(name: str, chain: _Chain) -> Path:
    """A file in the folder of the first recipe or below it; links are followed before judging."""
    current = chain.paths[-1].parent if chain.paths else chain.root
    shown = escape(name, limit=80)
    if not name or "\0" in name or Path(name).is_absolute():
        raise _refuse(f"{shown!r} is no relative path", "name a file in the recipe's folder")
    try:
        path = (current / name).resolve()
    except (OSError, RuntimeError) as error:
        raise _refuse(f"{shown!r} cannot be followed: {escape(error)}", "check the path") from None
    if not path.is_relative_to(chain.root):
        message = f"{shown!r} is outside the recipe's folder (reached by {_by(chain)})"
        raise _refuse(message, "copy it there, or ship it in a distribution: dist:name")
    if not _exists(path):
        near = nearest(path.name, [one.name for one in path.parent.glob("*.toml")])
        fix = f"did you mean {near!r}?" if near else "check the path"
        raise _refuse(f"there is no file {shown!r} (reached by {_by(chain)})", fix)
    return path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


def _by(chain: _Chain) -> str:
    return escape(" -> ".join(chain.names), limit=200)


def _shipped(distribution: str, recipe: str, catalogue: Catalogue) -> Path:
    shown = escape(distribution, limit=80)
    if not catalogue.allows(distribution):
        raise _refuse(f"{shown!r} is not allowed by ADVDIFF_PLUGINS", f"add {shown} to it", "P04")
    recipes = shipped_recipes(distribution)
    if recipes is None:
        near = nearest(canonical_distribution(distribution), catalogue.distributions())
        fix = f"did you mean {near!r}?" if near else f"install the distribution {shown!r}"
        raise _refuse(f"the distribution {shown!r} is not installed", fix, "R11")
    if recipe not in recipes:
        near = nearest(recipe, recipes)
        hint = f"did you mean {near!r}?" if near else f"it ships: {', '.join(recipes) or 'none'}"
        raise _refuse(f"{shown!r} ships no recipe {escape(recipe, limit=80)!r}", hint)
    return recipes[recipe].resolve()
