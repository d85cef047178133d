"""Strict hooks for the leaves of a recipe.

cattrs by itself turns 1.9 into 1, "12" into 12, true into 1 and 3 into "3". Here a value has the
type it is written with; the two widenings are an integer where a number is wanted, and a fraction
in quotes ("8/255"), as the field writes its radii.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from advdiff_core.errors import nearest
from advdiff_core.recipe.problems import described, is_clean, refuse

__all__ = ["HOOKS", "strict_literal"]

_FRACTION = re.compile(
    r"\s*([+-]?\d{1,18}(?:\.\d{1,18})?)\s*/\s*(\d{1,18}(?:\.\d{1,18})?)\s*", re.ASCII
)
_NUMBER = re.compile(r"[+-]?\d[\d_]*(\.\d+)?([eE][+-]?\d+)?")


def strict_bool(value: Any, _: Any) -> bool:
    """`true` or `false`, nothing that merely looks like it."""
    if type(value) is bool:
        return value
    text = str(value).lower()
    fix = f"write {text} without quotes" if text in ("true", "false") else "write true or false"
    raise refuse(f"found {described(value)}, wanted true or false", fix)


def strict_int(value: Any, _: Any) -> int:
    """An integer of at most 64 bits."""
    if type(value) is int:
        if not -(2**63) <= value < 2**63:
            raise refuse(f"found {described(value)}, wanted a 64-bit integer", code="R08")
        return value
    raise refuse(f"found {described(value)}, wanted an integer", _integer_fix(value))


def _integer_fix(value: Any) -> str:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return f"write {value} without quotes"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return f"write {int(value)}"
    return "write a whole number, for example 128"


def strict_float(value: Any, _: Any) -> float:
    """A finite number; integers widen, and strings may be fractions such as "8/255"."""
    number = _as_float(value)
    if number is None:
        fix = "write a number, for example 0.5"
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            fix = f"write {value} without quotes"
        raise refuse(f"found {described(value)}, wanted a number", fix)
    if not math.isfinite(number):
        raise refuse(f"found {described(value)}, wanted a finite number", code="R08")
    return number


def _as_float(value: Any) -> float | None:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value) if abs(value) < 2**1000 else math.inf
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    above, below = float(match[1]), float(match[2])
    return above / below if below else math.inf


def strict_str(value: Any, _: Any) -> str:
    """A string without control or bidi characters."""
    if type(value) is not str:
        fix = f'write "{value}"' if isinstance(value, int | float) else "write a string"
        raise refuse(f"found {described(value)}, wanted a string", fix)
    if not is_clean(value):
        message = f"found {described(value)}, which holds control or invisible characters"
        raise refuse(message, "take them out", code="R13")
    return value


def strict_path(value: Any, hint: Any) -> Path:
    """A path, written as a string; relative ones are relative to the working directory."""
    text = strict_str(value, hint)
    if not text or "\n" in text:
        raise refuse(f"found {described(value)}, wanted a path", "name a file or folder")
    return Path(text)


def strict_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    """One of the choices, of the same type: `true` is not 1."""
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    names = [choice for choice in choices if isinstance(choice, str)]
    near = nearest(value, names) if isinstance(value, str) else None
    listed = ", ".join(_toml(choice) for choice in choices)
    fix = f"did you mean {_toml(near)}?" if near else ""
    known = {type(choice) for choice in choices}
    code = "R08" if type(value) in known else "R07"
    raise refuse(f"found {described(value)}, wanted one of {listed}", fix, code=code)


def _toml(choice: Any) -> str:
    if isinstance(choice, bool):
        return str(choice).lower()
    return f'"{choice}"' if isinstance(choice, str) else str(choice)


#: Hook by leaf type.
HOOKS: Mapping[type[Any], Callable[[Any, Any], Any]] = MappingProxyType({
    bool: strict_bool,
    int: strict_int,
    float: strict_float,
    str: strict_str,
    Path: strict_path,
})  # fmt: skip
