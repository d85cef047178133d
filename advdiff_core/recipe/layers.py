"""Layers of a recipe and how they merge: tables merge, arrays replace, order never matters.

A layer is a tree of plain values plus the place each came from. Where a later layer names another
component (`use`), the settings of the earlier one are dropped: they belong to what is no longer
there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.read import Document
from advdiff_core.recipe.schema import TABLES, common_keys

__all__ = [
    "Layer",
    "Place",
    "dotted",
    "drop_replaced",
    "forget",
    "merge",
    "merge_tables",
    "place_of",
]

_BARE = re.compile(r"[A-Za-z0-9_-]+")


@frozen
class Place:
    """Where a value was written.

    Attributes:
        file: File as the user named it, "-s" for an override, "" for a dict.
        line: Line, 1-based; 0 if there is none.
        argument: The override's text.
    """

    file: str = ""
    line: int = 0
    argument: str = ""


@frozen
class Layer:
    """Plain tables and where each value was written.

    Attributes:
        data: Tables as parsed.
        places: Place by key; keys that were filled in have none.
    """

    data: dict[str, Any]
    places: dict[Key, Place] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, document: Document) -> Layer:
        """The layer of one text."""
        places = {key: Place(document.file, line) for key, line in document.lines.items()}
        return cls(document.data, places)


def dotted(key: Key) -> str:
    """A key as TOML writes it, `terms."a b".weight`; positions in arrays are numbers."""
    return ".".join(_part(part) for part in key)


def _part(part: str | int) -> str:
    if isinstance(part, int) or _BARE.fullmatch(part):
        return str(part)
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def place_of(places: Mapping[Key, Place], key: Key) -> Place:
    """Where `key` was written, or else the innermost table around it that was."""
    for length in range(len(key), 0, -1):
        if key[:length] in places:
            return places[key[:length]]
    return places.get((), Place())


def merge(base: Layer, top: Layer) -> Layer:
    """The recipe that `top` makes of `base`."""
    places = dict(base.places)
    data = merge_tables(base.data, top.data, (), places, top.places)
    return Layer(data, places)


def merge_tables(
    base: Mapping[str, Any],
    top: Mapping[str, Any],
    at: Key,
    places: dict[Key, Place],
    top_places: Mapping[Key, Place],
) -> dict[str, Any]:
    """Merge two tables at the key `at`; `places` begins as the base's and is edited to match."""
    merged = drop_replaced(base, top, at, places)
    if at in top_places:
        places[at] = top_places[at]
    for key, value in top.items():
        path = (*at, key)
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge_tables(merged[key], value, path, places, top_places)
        else:
            merged[key] = value
            forget(places, path)
            places.update({k: p for k, p in top_places.items() if k[: len(path)] == path})
    return merged


def drop_replaced(
    base: Mapping[str, Any], top: Mapping[str, Any], at: Key, places: dict[Key, Place]
) -> dict[str, Any]:
    """`base` without the settings of its component, if `top` names another one."""
    table = TABLES.get(str(at[0])) if at else None
    before = base.get("use", table.default if table and len(at) == 1 else "")
    if "use" not in top or not before or top["use"] == before:
        return dict(base)
    kept = common_keys(at)
    for key in base:
        if key not in kept:
            forget(places, (*at, key))
    return {key: value for key, value in base.items() if key in kept}


def forget(places: dict[Key, Place], path: Key) -> None:
    """Remove the places of `path` and of everything inside it."""
    for key in [key for key in places if key[: len(path)] == path]:
        del places[key]
