"""Reads a table that names a component: the core's keys, and the component's own settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from advdiff_core.discovery import Catalogue
from advdiff_core.errors import nearest
from advdiff_core.recipe.fields import construct, keys_of, read_fields, unknown_keys
from advdiff_core.recipe.layers import dotted
from advdiff_core.recipe.problems import Mismatch, Problem
from advdiff_core.recipe.resolve import CODE_KEYS, Resolved, resolve_component
from advdiff_core.recipe.schema import key_of
from advdiff_core.settings import Spec

if TYPE_CHECKING:
    from advdiff_core.recipe.lines import Key
    from advdiff_core.recipe.structure import Structurer

__all__ = ["read_component"]

T = TypeVar("T")


def read_component(
    reader: Structurer, kind: str, table: Mapping[str, Any], common: type[Any] | None
) -> tuple[Spec, dict[str, Any]]:
    """The component a table names, and the values of the core's keys beside its settings.

    Args:
        reader: Reads the values; its context says where the table is.
        kind: Registry kind of the component.
        table: The table.
        common: Class of the core's keys in this table; None if `use` is the only one.

    Raises:
        Mismatch: With every problem of either part.
    """
    problems: list[Problem] = []
    found = _caught(reader, problems, lambda: _resolve(reader, kind, table))
    shared: dict[str, Any] | None = {}
    if common is not None:
        # Unknown keys are judged beside the component's own, which may not be known.
        read = partial(read_fields, reader, common, table, others=None)
        shared = _caught(reader, problems, read)
    settings = None
    if found is not None:
        settings = _caught(reader, problems, partial(_settings, reader, found, table, common))
    if problems or found is None or shared is None:
        raise Mismatch(problems)
    return _spec(found, kind, table, settings, reader.now.path), shared


def _shared_keys(common: type[Any] | None) -> frozenset[str]:
    fields = attrs.fields(common) if common is not None else ()
    return frozenset(["use", *(key_of(one) for one in fields)])


def _caught(reader: Structurer, problems: list[Problem], read: Callable[[], T]) -> T | None:
    """What `read` returns; its problems join the list, with their place."""
    try:
        return read()
    except Mismatch as error:
        problems += reader.located(error.problems)
        return None


def _resolve(reader: Structurer, kind: str, table: Mapping[str, Any]) -> Resolved:
    path = (*reader.now.path, "use")
    if "use" not in table:
        raise Mismatch([_missing_use(kind, table, reader.catalogue, reader.now.path)])
    with reader.inside(path=path):
        found = resolve_component(reader.catalogue, kind, table["use"], reader.absent)
    if found.entry.warning and ":" not in table["use"]:
        reader.warnings.append(Problem(path=path, code="P07", message=found.entry.warning))
    return found


def _missing_use(kind: str, table: Mapping[str, Any], catalogue: Catalogue, path: Key) -> Problem:
    """`use` is missing: misspelt, written as code, or forgotten."""
    written = nearest("use", [key for key in table if len(key) <= 6])
    coded = next((key for key in table if key in CODE_KEYS), None)
    if coded or written:
        return unknown_keys([coded or written], ["use"], path)[0]  # type: ignore[arg-type]
    names = catalogue.names(kind)
    listed = f": {', '.join(names[:12])}" if names else ""
    fix = f"write use = ..., a {kind}{listed}"
    return Problem(path=(*path, "use"), code="R11", message="use is missing", fix=fix)


def _settings(
    reader: Structurer, found: Resolved, table: Mapping[str, Any], common: type[Any] | None
) -> Any:
    """The component's own settings; the core's keys of the table are left out."""
    shared = _shared_keys(common)
    taken = sorted(keys_of(found.settings).keys() & shared)
    if taken:
        message = f"{found.entry.name!r} has a setting {taken[0]!r}, the core's own key here"
        raise Mismatch([Problem(path=reader.now.path, code="P09", message=message)])
    with reader.inside(owner=found.component, plugin=found.entry.distribution):
        return construct(found.settings, read_fields(reader, found.settings, table, others=shared))


def _spec(found: Resolved, kind: str, table: Mapping[str, Any], settings: Any, path: Key) -> Spec:
    return Spec(
        kind=kind,
        use=table["use"],
        settings=settings,
        component=found.component,
        distribution=found.entry.distribution,
        version=found.entry.version,
        path=dotted(path),
    )
