"""Settings classes in words: what keys a table has, of what type, with what default and bounds."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import Attribute, frozen

from advdiff_core.settings import Spec

__all__ = ["Key", "description", "keys_of"]

_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_SIGNS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}


@frozen(kw_only=True)
class Key:
    """One key of a table.

    Attributes:
        key: Its name; dotted inside a nested table.
        type: What it holds, in words.
        default: Its default as TOML writes it; None if it is required, "" if it may be left out.
        allowed: Bounds or choices in words.
        unit: Unit of a number.
        help: One line.
    """

    key: str
    type: str
    default: str | None
    allowed: str
    unit: str
    help: str


def keys_of(cls: type[Any], *, prefix: str = "", skip: tuple[str, ...] = ()) -> list[Key]:
    """The keys of a Settings class, those of nested tables included.

    Args:
        cls: attrs class made with `advdiff_core.settings`.
        prefix: Put before each key, with its dot.
        skip: Fields to leave out.
    """
    # A type that cannot be resolved is shown as it was written.
    with suppress(Exception):
        attrs.resolve_types(cls)
    fields = [one for one in attrs.fields(cls) if one.init and one.name not in skip]
    return [key for one in fields for key in _keys_of_field(one, prefix)]


def _keys_of_field(field: Attribute[Any], prefix: str) -> Iterator[Key]:
    name = prefix + str(field.metadata.get("key") or field.alias)
    yield Key(
        key=name,
        type=_type_text(field.type, field.metadata),
        default=_default_text(field),
        allowed=_allowed_text(field.type, field.metadata),
        unit=str(field.metadata.get("unit") or ""),
        help=_help_text(field.metadata),
    )
    nested, mark = _nested(field.type)
    if nested is not None:
        yield from keys_of(nested, prefix=f"{name}{mark}.")


def _nested(kind: Any) -> tuple[type[Any] | None, str]:
    """The attrs class inside a field's type, and `[]` if there is a list of them."""
    for option in _options(kind):
        if isinstance(option, type) and attrs.has(option) and option is not Spec:
            return option, ""
        arguments = typing.get_args(option)
        if typing.get_origin(option) is tuple and arguments:
            inner, _ = _nested(arguments[0])
            return inner, "[]"
    return None, ""


def _options(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _type_text(kind: Any, metadata: Mapping[str, Any]) -> str:
    words = [_one_type(option, metadata) for option in _options(kind) if option is not type(None)]
    return " or ".join(dict.fromkeys(word for word in words if word))


def _one_type(kind: Any, metadata: Mapping[str, Any]) -> str:
    if kind is Spec or kind == "Spec":
        return f"{metadata.get('kind') or 'component'} table"
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        # More than one stand beside the bounds, where there is room.
        return _toml(arguments[0]) if len(arguments) == 1 else "text"
    if origin is tuple:
        return _tuple_type(arguments, metadata)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_type_text(arguments[1], metadata)}" if arguments else "table"
    if isinstance(kind, type):
        return "table" if attrs.has(kind) else kind.__name__
    return str(kind)


def _tuple_type(arguments: tuple[Any, ...], metadata: Mapping[str, Any]) -> str:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {_several(_type_text(arguments[0], metadata))}"
    return "[" + ", ".join(_type_text(one, metadata) for one in arguments) + "]"


def _several(word: str) -> str:
    return word + "s" if word.endswith(("integer", "number", "table", "path")) else word


def _default_text(field: Attribute[Any]) -> str | None:
    value = field.default
    if value is attrs.NOTHING:
        # The core fills in some components itself, and says so in the help.
        return "" if "if left out" in str(field.metadata.get("help")) else None
    factory = getattr(value, "factory", None)
    if factory is not None:
        value = None if getattr(value, "takes_self", False) else factory()
    return "" if value is None else _toml(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Spec):
        return f'{{ use = "{value.use}" }}'
    if isinstance(value, Mapping) or attrs.has(type(value)):
        return ""
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


def _allowed_text(kind: Any, metadata: Mapping[str, Any]) -> str:
    choices = metadata.get("choices") or _literals(kind)
    if choices:
        return ", ".join(_toml(choice) for choice in choices)
    bounds = metadata.get("bounds") or {}
    parts = [f"{_SIGNS[rule]}{_bound(limit)}" for rule, limit in bounds.items()]
    if metadata.get("ref"):
        parts.append(f"a {metadata['ref']} of the recipe")
    return ", ".join(parts)


def _literals(kind: Any) -> tuple[Any, ...]:
    """The values of a Literal with several, also inside a union."""
    found = [typing.get_args(one) for one in _options(kind) if typing.get_origin(one) is Literal]
    return next((one for one in found if len(one) > 1), ())


def _bound(limit: float) -> str:
    power = int(limit).bit_length() - 1
    if limit == 2**power and power >= 20:
        return f"2^{power}"
    return f"{limit:g}" if isinstance(limit, float) else f"{limit:,}"


def _help_text(metadata: Mapping[str, Any]) -> str:
    text = str(metadata.get("help") or "")
    applies = metadata.get("applies")
    if not applies:
        return text
    return f"{text} (with {applies[0]} = {' or '.join(_toml(one) for one in applies[1])})"


def description(cls: type[Any]) -> str:
    """Paragraphs of a class's docstring up to its first section, such as "Attributes:"."""
    own = cls.__dict__.get("__doc__") or ""
    kept: list[str] = []
    for paragraph in inspect.cleandoc(own).split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first.rstrip().endswith(":") and rest.startswith("    "):
            break
        kept.append(paragraph)
    return "\n\n".join(kept).strip()
