"""What differs between two recipes in keys that decide what is learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from advdiff_core.recipe.recipe import Recipe, plain
from advdiff_core.settings import Spec

__all__ = ["changes"]


def changes(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """`(key, old value, new value)` of every difference that a resumed run must not have.

    Keys declared `safe` (length of the run, log interval, metrics, ...) may differ.
    """
    pairs = [
        (one.name, getattr(old, one.name), getattr(new, one.name)) for one in _compared(Recipe)
    ]
    return [found for name, a, b in pairs for found in _differences(name, a, b)]


def _compared(cls: type[Any]) -> list[Any]:
    return [one for one in attrs.fields(cls) if one.eq and not one.metadata.get("safe")]


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if type(old) is not type(new) or _is_leaf(old):
        if plain(old) != plain(new):
            yield path, plain(old), plain(new)
    elif isinstance(old, Spec):
        if old.use != new.use:
            yield f"{path}.use", old.use, new.use
        else:
            yield from _differences(path, old.settings, new.settings)
    elif isinstance(old, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(f"{path}.{key}", old.get(key), new.get(key))
    elif isinstance(old, tuple):
        if len(old) != len(new):
            yield path, plain(old), plain(new)
        else:
            for i, (a, b) in enumerate(zip(old, new, strict=True)):
                yield from _differences(f"{path}.{i}", a, b)
    else:
        for one in _compared(type(old)):
            key = path if one.name == "spec" else f"{path}.{one.metadata.get('key') or one.alias}"
            yield from _differences(key, getattr(old, one.name), getattr(new, one.name))


def _is_leaf(value: Any) -> bool:
    return not (isinstance(value, Mapping | tuple) or attrs.has(type(value)))
