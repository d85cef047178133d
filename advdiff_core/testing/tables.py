"""Tables of settings drawn from the types, bounds and choices of a Settings class."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from advdiff_core.discovery.contract import field_types
from advdiff_core.recipe.schema import key_of

__all__ = ["edge_tables", "right_tables", "wrong_tables"]

#: Numbers are drawn from a range this wide where they are not bounded.
RANGE = 1000

Drawn = tuple[str, Any]


def right_tables(
    cls: type[Any], owner: type[Any], base: Mapping[str, Any]
) -> SearchStrategy[dict[str, Any]]:
    """Tables whose values keep types, bounds and choices; at most two keys differ from `base`.

    A component may refuse some of them still: its keys may have to go together.
    """
    keys = {
        key: drawn
        for key, one, hint in _fields(cls, owner)
        if (drawn := _right(one, hint)) is not None
    }
    if not keys:
        return st.just(dict(base))
    chosen = st.lists(st.sampled_from(sorted(keys)), max_size=2, unique=True)
    changed = chosen.flatmap(lambda names: st.fixed_dictionaries({n: keys[n] for n in names}))
    return changed.map(lambda some: {**base, **some})


def _fields(cls: type[Any], owner: type[Any]) -> list[tuple[str, attrs.Attribute[Any], Any]]:
    hints = field_types(cls, owner)
    return [(key_of(one), one, hints[one.name]) for one in attrs.fields(cls) if one.init]


def _right(one: attrs.Attribute[Any], hint: Any) -> SearchStrategy[Any] | None:
    """Values a recipe may write; None for types that only an author can fill."""
    metadata = one.metadata
    if metadata.get("ref") or metadata.get("kind"):
        return None
    if metadata.get("choices"):
        return st.sampled_from(metadata["choices"])
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin in (Union, types.UnionType):
        known = [_right(one, part) for part in parts if part is not type(None)]
        return next((found for found in known if found is not None), None)
    if origin is tuple and isinstance(one.default, tuple) and one.default:
        entry = _right(one, parts[0])
        return (
            None
            if entry is None
            else st.lists(entry, min_size=len(one.default), max_size=len(one.default))
        )
    if hint is bool:
        return st.booleans()
    return _number(metadata.get("bounds") or {}, hint) if hint in (int, float) else None


def _number(bounds: Mapping[str, float], hint: type[Any]) -> SearchStrategy[Any]:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is None:
        low = -RANGE if high is None else high - RANGE
    if high is None or high - low > RANGE:
        high = low + RANGE
    if hint is int:
        return st.integers(int(low) + ("gt" in bounds), int(high) - ("lt" in bounds))
    return st.floats(
        low, high, allow_nan=False, exclude_min="gt" in bounds,
        exclude_max="lt" in bounds and high == bounds["lt"], width=64,
    )  # fmt: skip


def wrong_tables(
    cls: type[Any], owner: type[Any], base: Mapping[str, Any]
) -> SearchStrategy[Drawn] | None:
    """A key and a value that its type, bounds or choices exclude; None if there is no key."""
    known = set(base)
    wrong = [
        (key, value)
        for key, one, hint in _fields(cls, owner)
        for value in _wrong(one, hint)
        if key in known or one.default is not attrs.NOTHING
    ]
    return st.sampled_from(wrong) if wrong else None


def _wrong(one: attrs.Attribute[Any], hint: Any) -> list[Any]:
    found: list[Any] = [[[]]]
    if hint in (int, float):
        found += ["fast", float("nan"), *_outside(one.metadata.get("bounds") or {}, hint)]
    if hint is bool:
        found += ["yes", 1]
    if one.metadata.get("choices") or get_origin(hint) is Literal:
        found += ["no-such-choice"]
    return found


def _outside(bounds: Mapping[str, float], hint: type[Any]) -> list[Any]:
    found = []
    for rule, limit in bounds.items():
        step = {"ge": -1, "le": 1}.get(rule, 0)
        found.append(hint(limit + step))
    return found


def edge_tables(cls: type[Any], owner: type[Any]) -> SearchStrategy[Drawn] | None:
    """A numeric key at the lowest value its bounds allow; 0 and -1 where nothing bounds it."""
    edges = [
        (key, hint(value))
        for key, one, hint in _fields(cls, owner)
        if hint in (int, float) and not one.metadata.get("choices") and not one.metadata.get("ref")
        for value in _edges(one.metadata.get("bounds") or {})
    ]
    return st.sampled_from(edges) if edges else None


def _edges(bounds: Mapping[str, float]) -> list[float]:
    if "ge" in bounds:
        return [bounds["ge"]]
    return [] if "gt" in bounds else [0, -1]
