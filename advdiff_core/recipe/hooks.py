"""The table `[hooks]`: which listeners to leave out, and options handed to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from advdiff_core.discovery import HOOKS
from advdiff_core.errors import nearest
from advdiff_core.recipe.fields import construct
from advdiff_core.recipe.problems import Mismatch, Problem, described, is_clean
from advdiff_core.recipe.schema import Hooks

if TYPE_CHECKING:
    from advdiff_core.recipe.lines import Key
    from advdiff_core.recipe.structure import Structurer

__all__ = ["read_hooks"]


def read_hooks(reader: Structurer, raw: Any) -> Hooks:
    """The listeners' table; the names must be those of installed listeners.

    Raises:
        Mismatch: R07 for a value of the wrong form, R11 for a listener that is not installed.
    """
    known = reader.catalogue.names(HOOKS)
    problems: list[Problem] = []
    if not isinstance(raw, dict):
        problems.append(_wrong(("hooks",), raw, "a table"))
        raise Mismatch(problems)
    options = {key: value for key, value in raw.items() if key != "off"}
    off: tuple[str, ...] = ()
    try:
        off = reader.table(Hooks, {"off": raw.get("off", [])}, ("hooks",)).off
    except Mismatch as error:
        problems += error.problems
    places: dict[Key, str] = {("hooks", "off", place): name for place, name in enumerate(off)}
    places |= {("hooks", name): name for name in options}
    problems += [_absent(at, name, known) for at, name in places.items() if name not in known]
    for name, table in options.items():
        if isinstance(table, dict):
            problems += _unfit(("hooks", name), table)
        else:
            problems.append(_wrong(("hooks", name), table, "a table of options"))
    if problems:
        raise Mismatch(problems)
    return construct(Hooks, {"off": off, "options": options})


def _wrong(path: Key, value: Any, wanted: str) -> Problem:
    return Problem(path=path, code="R07", message=f"found {described(value)}, wanted {wanted}")


def _absent(path: Key, name: str, known: list[str]) -> Problem:
    near = nearest(name, known)
    listed = ", ".join(known) or "none"
    fix = (
        f"did you mean {near!r}?"
        if near
        else f"install the one that offers it; installed: {listed}"
    )
    message = f"no installed distribution offers the listener {described(name)}"
    return Problem(path=path, code="R11", message=message, fix=fix)


def _unfit(path: Key, value: Any) -> list[Problem]:
    """Values a listener cannot be handed: dates, non-finite numbers, control characters."""
    if isinstance(value, dict):
        return [bad for key, inner in value.items() for bad in _unfit((*path, key), inner)]
    if isinstance(value, list):
        return [bad for place, inner in enumerate(value) for bad in _unfit((*path, place), inner)]
    finite = not isinstance(value, float) or math.isfinite(value)
    clean = not isinstance(value, str) or is_clean(value)
    if isinstance(value, bool | int | float | str) and finite and clean:
        return []
    return [_wrong(path, value, "a finite number, a clean string, true or false")]
