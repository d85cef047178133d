"""Reads the keys of one table into the fields of one attrs class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from advdiff_core.discovery.contract import field_types
from advdiff_core.errors import escape, nearest
from advdiff_core.recipe.problems import Mismatch, Problem, described, is_name, refuse
from advdiff_core.recipe.resolve import CODE_KEYS
from advdiff_core.recipe.schema import TABLES, key_of
from advdiff_core.settings import bounds_text

if TYPE_CHECKING:
    from advdiff_core.recipe.lines import Key
    from advdiff_core.recipe.structure import Structurer

__all__ = ["construct", "keys_of", "no_name", "read_fields", "unknown_keys"]

T = TypeVar("T")

_RADIUS = re.compile(r"radius|eps(ilon)?|gamma|bound|norm|delta|budget")
#: Largest value that is taken for a count of 8-bit levels.
_LEVELS = 255


def keys_of(cls: type[Any]) -> dict[str, attrs.Attribute[Any]]:
    """The fields of a table's class by the key a recipe writes; without the component itself."""
    return {
        key_of(one): one
        for one in attrs.fields(cls)
        if one.init and not (one.name == "spec" and hasattr(cls, "KIND"))
    }


def construct(cls: type[T], values: Mapping[str, Any]) -> T:
    """An object of `cls`; its own validators may refuse the values (R08)."""
    try:
        return cls(**values)
    except Exception as error:
        reason = escape(error) or type(error).__name__
        raise refuse(f"these settings do not go together: {reason}", code="R08") from None


def read_fields(
    reader: Structurer,
    cls: type[Any],
    table: Mapping[str, Any],
    *,
    others: frozenset[str] | None = frozenset(),
) -> dict[str, Any]:
    """The values of the fields of `cls` in `table`, by name for its constructor.

    Args:
        reader: Reads the values; its context says where the table is.
        cls: An attrs class.
        table: The table.
        others: Keys of the table that belong to another class; None if that is not known.

    Raises:
        Mismatch: With every unknown, missing, wrong and conflicting key.
    """
    known = keys_of(cls)
    hints = field_types(cls, reader.now.owner)
    problems = [] if others is None else unknown_keys(table, [*known, *others], reader.now.path)
    meant = {problem.fix for problem in problems}
    values: dict[str, Any] = {}
    for key, one in known.items():
        if key in table:
            try:
                values[str(one.alias)] = _read_value(reader, one, key, hints[one.name], table[key])
            except Mismatch as error:
                problems += error.problems
        elif one.default is attrs.NOTHING and _did_you_mean(key) not in meant:
            problems.append(_missing(one, key, reader.now.path))
    problems += _conflicts(cls, known, table, reader.now.path)
    if problems:
        raise Mismatch(problems)
    return values


def _read_value(
    reader: Structurer, one: attrs.Attribute[Any], key: str, hint: Any, value: Any
) -> Any:
    kind = one.metadata.get("kind", "")
    made = reader.entry(key, hint, value, kind=kind)
    path = (*reader.now.path, key)
    problems = list(_check(one, key, made, path))
    if problems:
        raise Mismatch(problems)
    return made


def _check(one: attrs.Attribute[Any], key: str, made: Any, path: Key) -> Iterable[Problem]:
    """Bounds, choices and the form of names, entry by entry."""
    if isinstance(made, tuple):
        for position, entry in enumerate(made):
            yield from _check(one, key, entry, (*path, position))
        return
    if one.metadata.get("ref") and isinstance(made, str) and made and not is_name(made):
        yield no_name(made, path)
    complaint = bounds_text(one.metadata, made)
    if complaint:
        fix = _bounds_fix(one, key, made)
        yield Problem(path=path, code="R08", message=complaint, fix=fix)


def no_name(text: str, path: Key) -> Problem:
    """A problem for a string that cannot name anything: it might leave its folder (Q04), or lie."""
    code = "Q04" if "/" in text or "\\" in text or text.startswith(".") else "R13"
    fix = "names hold ASCII letters, digits and _ . -, begin with none of . - and have at most 64"
    message = f"found {described(text)}, which is no name"
    return Problem(path=path, code=code, message=message, fix=fix)


def _bounds_fix(one: attrs.Attribute[Any], key: str, value: Any) -> str:
    choices = one.metadata.get("choices")
    if choices:
        near = nearest(str(value), [choice for choice in choices if isinstance(choice, str)])
        return _did_you_mean(near) if near else ""
    bounds = one.metadata.get("bounds") or {}
    top = bounds.get("le", bounds.get("lt"))
    levels = isinstance(value, float | int) and 1 < value <= _LEVELS
    if top is not None and top <= 1 and levels and _RADIUS.search(key):
        return f'for {value:g}/255 write "{value:g}/255"'
    return str(one.metadata.get("help", ""))


def _did_you_mean(name: object) -> str:
    return f"did you mean {name!r}?"


def unknown_keys(table: Mapping[str, Any], known: Iterable[str], path: Key) -> list[Problem]:
    """A problem for each key of `table` that is not known (R06, R13, Q03)."""
    listed = list(known)
    return [_unknown(key, listed, path) for key in table if key not in listed]


def _unknown(key: str, known: list[str], path: Key) -> Problem:
    here = (*path, key)
    if key in CODE_KEYS:
        message = f"found the key {described(key)}; a recipe names components, never code"
        return Problem(path=here, code="Q03", message=message, fix="write use = ...")
    near, home = nearest(key, known), _home(key, path)
    fix = f"keys here: {', '.join(sorted(known))}"
    if home or near:
        fix = f"it belongs to {home}" if home else _did_you_mean(near)
    return Problem(path=here, code="R06", message="unknown key", fix=fix)


def _home(key: str, path: Key) -> str:
    """The table of the core that has this key."""
    for name, table in TABLES.items():
        if path[:1] != (name,) and key in keys_of(table.cls):
            return f"[{name}.<name>]" if table.named else f"[{name}]"
    return ""


def _missing(one: attrs.Attribute[Any], key: str, path: Key) -> Problem:
    purpose = one.metadata.get("help", "")
    fix = f"write {key} = ..." + (f", {purpose}" if purpose else "")
    return Problem(path=(*path, key), code="R11", message=f"{key} is missing", fix=fix)


def _conflicts(
    cls: type[Any], known: Mapping[str, attrs.Attribute[Any]], table: Mapping[str, Any], path: Key
) -> Iterable[Problem]:
    """Keys that mean nothing beside the value of another key (R10)."""
    for key, one in known.items():
        applies = one.metadata.get("applies")
        if applies is None or key not in table:
            continue
        other, allowed = applies
        value = table.get(other, known[other].default)
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            yield Problem(
                path=(*path, key), code="R10", other=(*path, other),
                message=f"needs {other} = {wanted}, found {escape(value, limit=40)!r}",
                fix=f"take it out, or change {other}",
            )  # fmt: skip
    if exclusive := getattr(cls, "EXCLUSIVE", ()):
        yield from _exclusive(exclusive, known, table, path)


def _exclusive(
    keys: tuple[str, ...],
    known: Mapping[str, attrs.Attribute[Any]],
    table: Mapping[str, Any],
    path: Key,
) -> Iterable[Problem]:
    """Exactly one of the keys must be there."""
    written = [key for key in keys if key in table]
    listed = ", ".join(keys)
    if len(written) > 1:
        message = f"{written[0]} and {written[1]} exclude each other"
        yield Problem(
            path=(*path, written[1]), code="R10", other=(*path, written[0]),
            message=message, fix=f"write one of {listed}",
        )  # fmt: skip
    elif not written and not set(table) - set(known):
        yield Problem(path=path, code="R11", message=f"wanted one of {listed}", fix="write one")
