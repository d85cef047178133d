"""`-s key=value` on the command line: the last layer of a recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import frozen

from advdiff_core.errors import Fault, RecipeError, escape
from advdiff_core.recipe.layers import (
    Layer,
    Place,
    dotted,
    drop_replaced,
    forget,
    merge_tables,
    place_of,
)
from advdiff_core.recipe.lines import Key
from advdiff_core.recipe.read import parse_text

__all__ = ["apply_overrides", "key_and_value", "parsed"]

FILE = "-s"
_PART = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_ARGUMENT = re.compile(rf"[ \t]*({_PART}(?:[ \t]*\.[ \t]*{_PART})*)[ \t]*=(.*)", re.DOTALL)
#: What may go without quotes: names, paths, fractions, `dist:name`.
_BARE_WORD = re.compile(r"[\w./:+@~%-](?:[\w ./:+@~%-]*[\w./:+@~%-])?")


@frozen
class Override:
    """One argument, parsed.

    Attributes:
        argument: The text, for messages.
        key: Place of the value; numbers may be positions in arrays.
        value: The value.
    """

    argument: str
    key: tuple[str, ...]
    value: Any


def apply_overrides(layer: Layer, arguments: Sequence[str]) -> Layer:
    """The recipe with every `key=value` of `arguments` set; their order does not matter.

    Args:
        layer: The recipe so far.
        arguments: Texts `key=value`; values are TOML, and bare words strings.

    Raises:
        RecipeError: R16 with every argument that cannot be parsed or clashes.
    """
    faults: list[Fault] = []
    parsed: list[Override] = []
    for argument in arguments:
        try:
            parsed.append(_parse(argument))
        except RecipeError as error:
            faults += error.faults
    clashing = _clashes(parsed)
    faults += [fault for clash in clashing.values() for fault in clash.faults]
    sound = [one for position, one in enumerate(parsed) if position not in clashing]
    # `use` first: it drops the settings of the component it replaces, not those set beside it.
    for override in sorted(sound, key=lambda one: one.key[-1] != "use"):
        try:
            layer = _set(layer, override)
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(faults)
    return layer


def key_and_value(argument: str) -> tuple[str, str]:
    """The dotted key of a text `key=value`, and the text of its value.

    Args:
        argument: One argument of `-s`; its value is not looked at.

    Raises:
        RecipeError: R16 if it is not `key=value`.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        raise _refuse(argument, "this is not key=value")
    return dotted(_parse_key(argument, match.group(1))), match.group(2).strip()


def parsed(argument: str) -> tuple[str, Any]:
    """The dotted key of a text `key=value`, and its value as TOML reads it.

    Args:
        argument: One argument; a bare word is a string.

    Raises:
        RecipeError: R16 if it cannot be parsed.
    """
    found = _parse(argument)
    return dotted(found.key), found.value


def _refuse(argument: str, message: str, fix: str = "write -s key=value") -> RecipeError:
    text = f"{escape(argument, limit=80)!r}: {message}"
    return RecipeError([Fault(code="R16", file=FILE, key="", message=text, fix=fix)])


def _parse(argument: str) -> Override:
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        raise _refuse(argument, "this is not key=value")
    key_text, raw = match.group(1), match.group(2).strip()
    key = _parse_key(argument, key_text)
    if not raw:
        raise _refuse(argument, "there is no value", f'write -s {key_text}="" for an empty string')
    if "\n" in raw:
        raise _refuse(argument, "a value is on one line")
    return Override(argument, key, _parse_value(argument, raw))


def _parse_key(argument: str, text: str) -> tuple[str, ...]:
    try:
        table = parse_text(f"{text} = 0", FILE).data
    except RecipeError as error:
        raise _refuse(argument, error.faults[0].message) from None
    key: tuple[str, ...] = ()
    node: Any = table
    while isinstance(node, dict):
        ((part, node),) = node.items()
        key = (*key, part)
    return key


def _parse_value(argument: str, raw: str) -> Any:
    try:
        return parse_text(f"v = {raw}", FILE).data["v"]
    except RecipeError as error:
        if error.faults[0].code == "R02" and _BARE_WORD.fullmatch(raw):
            return raw
        raise _refuse(
            argument, f"the value is not TOML: {error.faults[0].message}", "quote strings"
        ) from None


def _clashes(parsed: Sequence[Override]) -> dict[int, RecipeError]:
    """Arguments that set a value where another sets something inside it; both by position."""
    found: dict[int, RecipeError] = {}
    for outer_at, outer in enumerate(parsed):
        for inner_at, inner in enumerate(parsed):
            inside = len(inner.key) > len(outer.key) and inner.key[: len(outer.key)] == outer.key
            if inside and not isinstance(outer.value, dict | list):
                message = f"clashes with -s {escape(inner.argument, limit=80)!r}"
                fix = f"{dotted(outer.key)} is either a value or a table"
                found[outer_at] = _refuse(outer.argument, message, fix)
                found.setdefault(inner_at, RecipeError([]))
    return found


def _set(layer: Layer, override: Override) -> Layer:
    """`layer` with one value set."""
    places = dict(layer.places)
    data = _put(layer.data, override.key, (), override, places)
    return Layer(data, places)


def _put(
    node: Any, rest: tuple[str, ...], at: Key, override: Override, places: dict[Key, Place]
) -> Any:
    """`node`, which is at `at`, with the value set at `rest` inside it."""
    if not rest:
        return _replace(node, at, override, places)
    if isinstance(node, list):
        index = _position(node, rest[0], at, override)
        entry = _put(node[index], rest[1:], (*at, index), override, places)
        return [*node[:index], entry, *node[index + 1 :]]
    if not isinstance(node, dict):
        raise _blocked(node, at, override, places)
    if rest == ("use",):
        node = drop_replaced(node, {"use": override.value}, at, places)
    below = _put(node.get(rest[0], {}), rest[1:], (*at, rest[0]), override, places)
    return {**node, rest[0]: below}


def _replace(node: Any, at: Key, override: Override, places: dict[Key, Place]) -> Any:
    added = _places_below(at, override.value, Place(FILE, 0, override.argument))
    if isinstance(node, dict) and isinstance(override.value, dict):
        return merge_tables(node, override.value, at, places, added)
    forget(places, at)
    places.update(added)
    return override.value


def _position(node: list[Any], part: str, at: Key, override: Override) -> int:
    if part.isdecimal() and int(part) < len(node):
        return int(part)
    message = f"{dotted(at)} is an array of {len(node)}, {escape(part)!r} is no position in it"
    raise _refuse(override.argument, message, "count from 0, or set the whole array")


def _places_below(at: Key, value: Any, place: Place) -> dict[Key, Place]:
    found: dict[Key, Place] = {at: place}
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for part, inner in items:
        found |= _places_below((*at, part), inner, place)
    return found


def _blocked(node: Any, at: Key, override: Override, places: dict[Key, Place]) -> RecipeError:
    found = place_of(places, at)
    where = f" ({found.file}:{found.line})" if found.line else ""
    message = f"{dotted(at)} is {escape(repr(node), limit=40)}{where}, not a table"
    return _refuse(override.argument, message, f"set {dotted(at)} itself")
