"""What a Settings class may look like: the types a recipe can fill, and defaults that hold."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin
from weakref import WeakKeyDictionary

import attrs

from advdiff_core.discovery.kinds import KINDS
from advdiff_core.errors import escape
from advdiff_core.settings import Spec, bounds_text

__all__ = ["field_types", "settings_complaint", "type_name"]

_SCALARS = (bool, int, float, str, Path)
_ALLOWED = (
    "bool, int, float, str, Literal, Path, tuple, dict[str, ...], X | None, "
    "nested settings classes and Spec"
)

#: Resolved annotations by class and owner: resolving them takes half the time of a load.
_TYPES: WeakKeyDictionary[type[Any], dict[type[Any] | None, dict[str, Any]]] = WeakKeyDictionary()


class BrokenSettingsError(Exception):
    """A Settings class that no recipe could fill."""


def field_types(cls: type[Any], owner: type[Any] | None = None) -> dict[str, Any]:
    """Types of the fields of an attrs class by attribute name, strings resolved.

    Args:
        cls: The attrs class.
        owner: The component it is nested in; its other nested classes can be named in annotations.

    Raises:
        BrokenSettingsError: If an annotation cannot be resolved.
    """
    by_owner = _TYPES.setdefault(cls, {})
    if owner not in by_owner:
        by_owner[owner] = _resolved(cls, owner)
    return by_owner[owner]


def _resolved(cls: type[Any], owner: type[Any] | None) -> dict[str, Any]:
    names = dict(vars(owner)) if owner is not None else None
    try:
        hints = typing.get_type_hints(cls, localns=names)
    except Exception as error:
        message = f"an annotation of {cls.__name__} cannot be resolved: {escape(error)}"
        raise BrokenSettingsError(message) from error
    return {one.name: hints.get(one.name, Any) for one in attrs.fields(cls) if one.init}


def settings_complaint(component: type[Any], cls: Any) -> str:
    """Why a component's Settings class cannot be used (P09); "" if it can."""
    try:
        _check_settings(cls, component, ())
    except BrokenSettingsError as error:
        return str(error)
    return ""


def _check_settings(cls: Any, owner: type[Any], above: tuple[type[Any], ...]) -> None:
    if not isinstance(cls, type) or not attrs.has(cls):
        message = f"{type_name(cls)} is not made with advdiff_core.settings"
        raise BrokenSettingsError(message)
    if cls in above:
        message = f"{cls.__name__} contains itself"
        raise BrokenSettingsError(message)
    hints = field_types(cls, owner)
    for one in attrs.fields(cls):
        if one.init:
            _check_field(one, hints[one.name], owner, (*above, cls))
            _check_default(cls, one, hints[one.name])
    _check_together(cls)


def _check_field(
    one: attrs.Attribute[Any], hint: Any, owner: type[Any], above: tuple[type[Any], ...]
) -> None:
    if one.alias == "use":
        message = "the key 'use' is the recipe's own"
        raise BrokenSettingsError(message)
    kind = one.metadata.get("kind")
    if kind and kind not in KINDS:
        message = f"{one.name}: there is no kind {kind!r}"
        raise BrokenSettingsError(message)
    if bool(kind) != _holds_spec(hint):
        message = f'{one.name}: a Spec needs setting(kind="..."), and only a Spec takes it'
        raise BrokenSettingsError(message)
    for nested in _check_type(one.name, hint):
        _check_settings(nested, owner, above)


def _holds_spec(hint: Any) -> bool:
    return hint is Spec or any(_holds_spec(part) for part in get_args(hint))


def _check_type(name: str, hint: Any) -> list[type[Any]]:
    """The nested settings classes in a field's type.

    Raises:
        BrokenSettingsError: If a recipe cannot hold that type.
    """
    if hint in _SCALARS or hint is Spec or hint is type(None):
        return []
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal and all(isinstance(part, str | int) for part in parts):
        return []
    if origin in (Union, types.UnionType):
        return [cls for part in parts for cls in _check_type(name, part)]
    if origin is tuple and parts:
        return [cls for part in parts if part is not ... for cls in _check_type(name, part)]
    if origin in (dict, Mapping) and parts[0] is str:
        return _check_type(name, parts[1])
    if isinstance(hint, type) and attrs.has(hint):
        return [hint]
    message = f"{name} has type {type_name(hint)}; a recipe can hold {_ALLOWED}"
    raise BrokenSettingsError(message)


def _check_default(cls: type[Any], one: attrs.Attribute[Any], hint: Any) -> None:
    """A default has the type of its field and keeps its bounds."""
    if one.default is attrs.NOTHING or getattr(one.default, "takes_self", False):
        return
    value = _default_of(cls, one)
    complaint = bounds_text(one.metadata, value)
    if not _fits(value, hint):
        complaint = f"{escape(repr(value), limit=40)} is no {type_name(hint)}"
    if complaint:
        message = f"the default of {one.name} is not valid: {complaint}"
        raise BrokenSettingsError(message)


def _fits(value: Any, hint: Any) -> bool:
    """True if a default has the type that a recipe's value would get."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = (parts[0],) * len(value) if parts[-1] is ... else parts
        return len(wanted) == len(value) and all(map(_fits, value, wanted))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(inner, parts[1]) for inner in value.values()
        )
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint if hint in (bool, int, str) else isinstance(value, hint)


def _check_together(cls: type[Any]) -> None:
    """Where every key has a default, the defaults pass the class's own validators."""
    if all(one.default is not attrs.NOTHING for one in attrs.fields(cls) if one.init):
        try:
            cls()
        except Exception as error:
            message = f"its defaults are not valid: {escape(error)}"
            raise BrokenSettingsError(message) from error


def _default_of(cls: type[Any], one: attrs.Attribute[Any]) -> Any:
    default: Any = one.default
    if not hasattr(default, "takes_self"):
        return default
    try:
        return default.factory()
    except Exception as error:
        message = f"the default of {cls.__name__}.{one.name} cannot be made: {escape(error)}"
        raise BrokenSettingsError(message) from error


def type_name(hint: Any) -> str:
    """A type as a person reads it, for example "tuple[float, ...]"."""
    if isinstance(hint, type) and not get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "")
