"""Loads recipes: text, bases, overrides, defaults, types, rules; every fault at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, evolve, field

from advdiff_core.discovery import KINDS, Catalogue, scan
from advdiff_core.errors import Fault, RecipeError, escape
from advdiff_core.recipe import rules
from advdiff_core.recipe.draft import Draft
from advdiff_core.recipe.extends import with_bases
from advdiff_core.recipe.fields import no_name, unknown_keys
from advdiff_core.recipe.fill import filled, run_name
from advdiff_core.recipe.hooks import read_hooks
from advdiff_core.recipe.layers import Layer, dotted
from advdiff_core.recipe.lines import Key, LineMap
from advdiff_core.recipe.lock import absent_plugins, lock_notes, locked_data, locked_inits
from advdiff_core.recipe.notes import notes_on
from advdiff_core.recipe.overrides import apply_overrides
from advdiff_core.recipe.problems import (
    Mismatch,
    Problem,
    as_fault,
    described,
    is_name,
    sort_faults,
)
from advdiff_core.recipe.read import Document, parse_text, read_file
from advdiff_core.recipe.recipe import LANGUAGE, Recipe
from advdiff_core.recipe.schema import ROOT_VIEWS, TABLES, Hooks, Model, Table
from advdiff_core.recipe.structure import Structurer

__all__ = ["check_recipe", "load_recipe", "loads_recipe", "recipe_from_dict"]

T = TypeVar("T")
_TOP = ("advdiff", "extends", "lock", "hooks")
_NEEDED = {"data": ("[data]", '"digits"'), "models": ("[models.student]", '"unet"')}
_REFS = {"role": "models", "view": "views", "term": "terms", "player": "players"}


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), catalogue: Catalogue | None = None
) -> Recipe:
    """Read, resolve and check a recipe file. Imports the components it names, and no others.

    Args:
        path: The file.
        overrides: `key=value` texts as after `-s` on the command line.
        catalogue: What is installed; scanned if left out.

    Raises:
        RecipeError: With every fault found.
    """
    return _load(read_file(path), overrides, catalogue, run_name(Path(path)))


def loads_recipe(
    text: str,
    name: str = "recipe",
    overrides: Sequence[str] = (),
    catalogue: Catalogue | None = None,
) -> Recipe:
    """Like `load_recipe`, for a text; `extends` looks for files in the working directory.

    Args:
        text: TOML text.
        name: What to call it in messages.
        overrides: `key=value` texts.
        catalogue: What is installed; scanned if left out.

    Raises:
        RecipeError: With every fault found.
    """
    return _load(parse_text(text, name), overrides, catalogue, run_name(Path(name)))


def recipe_from_dict(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), catalogue: Catalogue | None = None
) -> Recipe:
    """The Python escape hatch: the same recipe from plain tables instead of TOML.

    Args:
        tables: Tables as nested dicts; tuples count as arrays, paths as strings.
        overrides: `key=value` texts.
        catalogue: What is installed; scanned if left out.

    Raises:
        RecipeError: With every fault found; faults have a key and no line.
    """
    document = Document(data=_toml_values(tables, ()), lines=LineMap(), file="")
    return _load(document, overrides, catalogue, "run")


def check_recipe(
    path: str | Path, overrides: Sequence[str] = (), catalogue: Catalogue | None = None
) -> list[Fault]:
    """Every fault of a recipe file; empty if it is sound."""
    try:
        load_recipe(path, overrides, catalogue)
    except RecipeError as error:
        return list(error.faults)
    return []


def _load(
    document: Document, overrides: Sequence[str], catalogue: Catalogue | None, name: str
) -> Recipe:
    catalogue = catalogue or scan()
    layer = with_bases(document, catalogue)
    layer = apply_overrides(layer, overrides)
    reader = Structurer(catalogue, absent_plugins(layer.data, catalogue))
    return _Loader(layer, catalogue, document.file, reader).load(name)


def _toml_values(value: Any, path: Key) -> Any:
    """Python values as TOML has them; what TOML has not is left for the types to refuse."""
    if len(path) > 64:
        fault = Fault(code="R05", key=dotted(path[:4]), message="more than 64 tables deep")
        raise RecipeError([fault])
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            message = f"found the key {escape(repr(wrong), limit=40)}, wanted a string"
            raise RecipeError([Fault(code="R07", key=dotted(path), message=message)])
        return {key: _toml_values(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_toml_values(inner, (*path, place)) for place, inner in enumerate(value)]
    return str(value) if isinstance(value, Path) else value


@define
class _Loader:
    """Judges one merged recipe; collects problems until the end."""

    layer: Layer
    catalogue: Catalogue
    file: str
    reader: Structurer
    problems: list[Problem] = field(factory=list)
    tables: dict[str, Any] = field(factory=dict)

    def load(self, name: str) -> Recipe:
        """The recipe.

        Raises:
            RecipeError: With every problem found.
        """
        self._check_top()
        self.tables = filled(self.layer.data, name)
        parts = {key: self._part(key, table) for key, table in TABLES.items()}
        hooks = self._try(partial(read_hooks, self.reader, self.tables.get("hooks", {})))
        names = {
            ref: self._declared(table)
            for ref, table in _REFS.items()
            if isinstance(self.tables.get(table, {}), dict)
        }
        self.problems += rules.check(Draft(names=names, **parts))
        if self.problems:
            raise RecipeError(self._faults(self.problems))
        recipe = Recipe(
            **parts,
            hooks=hooks or Hooks(),
            source={dotted(key): place for key, place in self.layer.places.items()},
        )
        found = [*self.reader.warnings, *notes_on(recipe), *lock_notes(self.tables, recipe)]
        warnings = tuple(self._faults(found))
        return evolve(
            recipe, warnings=warnings, locked=locked_inits(self.tables),
            locked_data=locked_data(self.tables),
        )  # fmt: skip

    def _faults(self, problems: Iterable[Problem]) -> list[Fault]:
        return sort_faults((as_fault(one, self.layer.places) for one in problems), self.file)

    def _try(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None if it raises, with its problems kept."""
        try:
            return read()
        except Mismatch as error:
            self.problems += error.problems
            return None

    def _check_top(self) -> None:
        data = self.layer.data
        self.problems += unknown_keys(data, [*TABLES, *_TOP], ())
        # Only the dict form can hold None; taken for a missing table, it would lose its defaults.
        self.problems += [_no_table(key) for key in TABLES if key in data and data[key] is None]
        version = data.get("advdiff", LANGUAGE)
        if type(version) is not int or version != LANGUAGE:
            message = (
                f"found {described(version)}, this advdiff reads recipes of version {LANGUAGE}"
            )
            fix = f"write advdiff = {LANGUAGE}, or use another version of advdiff-core"
            self.problems.append(Problem(path=("advdiff",), code="R08", message=message, fix=fix))

    def _part(self, key: str, table: Table) -> Any:
        """One top-level table as objects; None, or without its faulty entries, if it has any."""
        raw = self.tables.get(key)
        if table.named:
            return self._named(key, table, {} if raw is None else raw)
        if raw is None and key in _NEEDED and key not in self.layer.data:
            self.problems.append(_missing_table(key))
        if raw is None and key != "evaluate":
            return None
        raw = {} if raw is None else raw
        return self._try(partial(self.reader.table, table.cls, raw, (key,), table.kind))

    def _named(self, key: str, table: Table, raw: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if not isinstance(raw, dict):
            message = f"found {described(raw)}, wanted tables [{key}.<name>]"
            self.problems.append(Problem(path=(key,), code="R07", message=message))
            return made
        if not raw and key in _NEEDED and self.layer.data.get(key, {}) is not None:
            self.problems.append(_missing_table(key))
        for name in sorted(raw):
            self._check_name(key, name)
            kind = _kind_of(table, raw[name])
            value = self._try(partial(self.reader.table, table.cls, raw[name], (key, name), kind))
            if value is not None:
                made[name] = value
        return made

    def _check_name(self, key: str, name: str) -> None:
        if not is_name(name):
            self.problems.append(no_name(name, (key, name)))

    def _declared(self, key: str) -> list[str]:
        own = sorted(self.tables.get(key, {}))
        return [*own, *ROOT_VIEWS] if key == "views" else own


def _kind_of(table: Table, raw: Any) -> str:
    """Registry kind of the component in a table; a model says its own."""
    if table.cls is not Model or not isinstance(raw, dict):
        return table.kind
    kind = raw.get("kind", table.kind)
    return kind if isinstance(kind, str) and kind in KINDS else table.kind


def _no_table(key: str) -> Problem:
    message = f"found {described(None)}, wanted a table"
    return Problem(path=(key,), code="R07", message=message, fix="leave the key out for defaults")


def _missing_table(key: str) -> Problem:
    title, example = _NEEDED[key]
    return Problem(
        path=(key,), code="R11", message=f"the table {title} is missing",
        fix=f"add {title} with use = {example}",
    )  # fmt: skip
