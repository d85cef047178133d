"""A table of a recipe that names a component, ready to paste: what `advdiff explain` ends with."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import attrs
import tomli_w

from advdiff_core.discovery.contract import field_types
from advdiff_core.recipe.fields import keys_of
from advdiff_core.recipe.schema import TABLES, Table
from advdiff_core.settings import Spec

__all__ = ["example_of"]

#: Names of tables `[table.<name>]`; terms are called as the component.
_NAMES = {"models": "student", "views": "adv", "players": "student"}
#: Roles of what is no backbone.
_ROLES = {"discriminator": "judge", "alignment_target": "target"}
_REFS = {"role": "student", "view": "clean", "player": "student", "term": "denoise"}
#: Keys with defaults that are shown, to be changed.
_SHOWN = 3
#: Highest level of 8-bit images, in which radii are written.
_LEVELS = 255

#: Name of some usable component of a kind that needs no settings.
FirstOf = Callable[[str], str]


def example_of(kind: str, use: str, settings: type[Any], owner: type[Any], first: FirstOf) -> str:
    """TOML with `use`, the keys that must be there, and a few of those that may be.

    Args:
        kind: Registry kind of the component.
        use: How a recipe names it.
        settings: Class of its settings.
        owner: The component.
        first: Finds a component for a key that holds one.

    Returns:
        The text; "" for a kind that no table of a recipe names.
    """
    own = {"use": use, **_keys(settings, owner, first)}
    if kind == "attack":
        return _inline("views.adv", "perturb", {"use": "attack", "attack": own})
    if kind in _ROLES:
        return _table(f"models.{_ROLES[kind]}", {"use": use, "kind": kind, **own})
    for name, table in TABLES.items():
        title = _title(name, table, use)
        if table.kind == kind:
            return _table(title, own)
        if found := _held(table.cls, kind, own):
            return _inline(title, *found)
    return ""


def _held(cls: type[Any], kind: str, own: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The key of a table that holds such a component, itself or in a table of it, and its value."""
    hints = field_types(cls)
    for key, one in keys_of(cls).items():
        if one.metadata.get("kind") == kind:
            return key, [own] if get_origin(hints[one.name]) is tuple else own
        inner = hints[one.name]
        if isinstance(inner, type) and attrs.has(inner) and (found := _held(inner, kind, own)):
            return key, dict([found])
    return None


def _title(name: str, table: Table, use: str) -> str:
    return f"{name}.{_NAMES.get(name) or _word(use)}" if table.named else name


def _word(use: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in use.rpartition(":")[2])


def _table(title: str, own: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_toml(value)}" for key, value in own.items()]
    return "\n".join([f"[{title}]", *lines])


def _inline(title: str, key: str, value: Any) -> str:
    return f"[{title}]\n{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping) and value:
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float) and _LEVELS * value in range(1, _LEVELS):
        # The double itself would fill half the line.
        return f'"{_LEVELS * value:g}/{_LEVELS}"'
    if isinstance(value, Mapping):
        return "{}"
    return tomli_w.dumps({"x": value}).partition("= ")[2].strip()


def _keys(cls: type[Any], owner: type[Any], first: FirstOf) -> dict[str, Any]:
    fields, hints = keys_of(cls), field_types(cls, owner)
    needed = {
        key: _value(hints[one.name], one.metadata, owner, first)
        for key, one in fields.items()
        if one.default is attrs.NOTHING
    }
    shown = (
        (key, one.default)
        for key, one in fields.items()
        if _is_plain(one.default) and not one.metadata.get("applies")
    )
    return {**needed, **dict(islice(shown, _SHOWN))}


def _is_plain(default: Any) -> bool:
    """True for a default that says something when it is written out."""
    if isinstance(default, tuple):
        return bool(default) and all(map(_is_plain, default))
    return isinstance(default, bool | int | float) or (isinstance(default, str) and default != "")


def _value(hint: Any, metadata: Mapping[str, Any], owner: type[Any], first: FirstOf) -> Any:
    """Something that a key without default takes."""
    if metadata.get("ref") or metadata.get("choices"):
        return _REFS.get(metadata["ref"]) or metadata["choices"][0]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        part = next(one for one in parts if one is not type(None))
        return _value(part, metadata, owner, first)
    if origin is tuple:
        wanted = parts[:1] if parts[-1] is ... else parts
        return [_value(part, metadata, owner, first) for part in wanted]
    if hint is Spec:
        return {"use": first(metadata["kind"])}
    if isinstance(hint, type) and attrs.has(hint):
        return _keys(hint, owner, first)
    return _scalar(hint, metadata)


def _scalar(hint: Any, metadata: Mapping[str, Any]) -> Any:
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    if hint is bool:
        return False
    if hint in (int, float):
        return _number(metadata.get("bounds") or {}, whole=hint is int)
    return "path/to/it" if hint is Path else "name" if hint is str else {}


def _number(bounds: Mapping[str, float], *, whole: bool) -> float:
    """A number within bounds, 1 where that is."""
    low = bounds.get("ge", bounds.get("gt", -float("inf")) + (1 if whole else 0))
    high = bounds.get("le", bounds.get("lt", float("inf")) - (1 if whole else 0))
    if low < 1 < high or (low <= 1 <= high and whole):
        return 1 if whole else 1.0
    if low == -float("inf"):
        return int(high) if whole else high - 1.0
    if whole:
        return int(low)
    return low + 1.0 if high == float("inf") else (low + high) / 2
