"""JSON Schema of single values: what a field of a Settings class takes, with bounds and default.

Only keywords that mean the same in draft-07 (what TOML editors validate with) and in 2020-12 are
used. Some of what the loader refuses cannot be said in them: a float where an integer is wanted
(`1.0`), a fraction out of bounds, numbers that are not finite, invisible characters.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import Attribute

from advdiff_core.settings import Spec

__all__ = ["NAME", "Json", "any_of", "described", "scalar", "union_options"]

Json = dict[str, Any]

#: Names of runs, roles, views, terms and players, as `problems.is_name`.
NAME = "^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
_NUMBER = r"[+-]?[0-9]+(\.[0-9]+)?"
_NOT_ZERO = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"
_FRACTION = rf"^\s*{_NUMBER}\s*/\s*{_NOT_ZERO}\s*$"
_KEYWORDS = {
    "gt": "exclusiveMinimum",
    "ge": "minimum",
    "lt": "exclusiveMaximum",
    "le": "maximum",
}


def union_options(hint: Any) -> list[Any]:
    """The types of a union but None, which TOML cannot write; a single type by itself."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [part for part in parts if part is not type(None)]


def any_of(options: Iterable[Json]) -> Json:
    """A schema that takes what any of these takes, without repetition."""
    unique: list[Json] = []
    for option in options:
        if option not in unique:
            unique.append(option)
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def scalar(hint: Any, metadata: Mapping[str, Any]) -> Json:
    """The schema of a number, text, switch, path or choice.

    Args:
        hint: The type; neither a union nor a table nor an array.
        metadata: The field's; bounds hold for numbers, choices for all.
    """
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    choices = metadata.get("choices")
    if choices:
        return _choice(hint, choices)
    if hint is bool:
        return {"type": "boolean"}
    if hint in (int, float):
        limits = {_KEYWORDS[rule]: limit for rule, limit in _bounds(metadata).items()}
        # A pattern holds for strings alone, and bounds for numbers alone.
        base = {"type": ["number", "string"], "pattern": _FRACTION}
        return {**(base if hint is float else {"type": "integer"}), **limits}
    if hint is Path:
        return {"type": "string", "minLength": 1}
    if metadata.get("ref"):
        return {"type": "string", "anyOf": [{"pattern": NAME}, {"maxLength": 0}]}
    return {"type": "string"}


def _bounds(metadata: Mapping[str, Any]) -> Mapping[str, float]:
    return metadata.get("bounds") or {}


def _choice(hint: Any, choices: Iterable[Any]) -> Json:
    listed: Json = {"enum": list(choices)}
    if hint is not float:
        return listed
    return {"anyOf": [listed, {"type": "string", "pattern": _FRACTION}]}


def described(schema: Json, one: Attribute[Any]) -> Json:
    """The schema of a field with its help, unit and default.

    Args:
        schema: Schema of its values.
        one: The field.
    """
    unit, ref = one.metadata.get("unit"), one.metadata.get("ref")
    words = str(one.metadata.get("help") or "") + (f" [{unit}]" if unit else "")
    if ref:
        words += f" (a {ref} of the recipe)"
    default = _default(one)
    made = {"description": words, **schema} if words else dict(schema)
    return made if default is None else {**made, "default": default}


def _default(one: Attribute[Any]) -> Any:
    value = one.default
    if value is attrs.NOTHING or getattr(value, "takes_self", False):
        return None
    factory = getattr(value, "factory", None)
    return _plain(factory() if factory is not None else value)


def _plain(value: Any) -> Any:
    """A default as JSON; None for tables, whose keys have defaults of their own."""
    if isinstance(value, Spec | Mapping) or attrs.has(type(value)):
        return None
    if isinstance(value, tuple | list):
        made = [_plain(entry) for entry in value]
        return None if None in made else made
    return str(value) if isinstance(value, Path) else value
