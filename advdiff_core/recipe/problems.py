"""What is wrong with a value of a recipe, collected while its tables become objects."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from advdiff_core.errors import Fault, escape
from advdiff_core.recipe.layers import Place, dotted, place_of
from advdiff_core.recipe.lines import Key

__all__ = [
    "Mismatch",
    "Problem",
    "as_fault",
    "described",
    "is_clean",
    "is_name",
    "refuse",
    "sort_faults",
]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_WORDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


@frozen(kw_only=True)
class Problem:
    """One finding, before it is known where its key was written.

    Attributes:
        path: Place of the value.
        code: Fault id.
        message: What was found and wanted.
        fix: The mend.
        plugin: Distribution that owns the component.
        other: Place of the second key of a conflict.
    """

    path: Key
    code: str
    message: str
    fix: str = ""
    plugin: str = ""
    other: Key | None = None


class Mismatch(Exception):  # noqa: N818 - never leaves the loader.
    """A value that does not fit, with everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


def refuse(message: str, fix: str = "", code: str = "R07") -> Mismatch:
    """A mismatch of the value at hand; the caller knows where that is."""
    return Mismatch([Problem(path=(), code=code, message=message, fix=fix)])


def as_fault(problem: Problem, places: Mapping[Key, Place]) -> Fault:
    """A problem with file and line; a conflict names the line of its other key too."""
    place = place_of(places, problem.path)
    message = problem.message
    if problem.other is not None:
        other = place_of(places, problem.other)
        where = f"line {other.line}" if other.file == place.file else f"{other.file}:{other.line}"
        message += f" ({dotted(problem.other)}: {where})" if other.line else ""
    return Fault(
        code=problem.code, file=place.file, line=place.line, key=dotted(problem.path),
        message=message, fix=problem.fix, plugin=problem.plugin,
    )  # fmt: skip


def sort_faults(faults: Iterable[Fault], first: str) -> list[Fault]:
    """Faults without repetition in file order, those of the file `first` before others."""
    return sorted(dict.fromkeys(faults), key=lambda one: (one.file != first, one.file, one.line))


def described(value: Any) -> str:
    """A value as a message shows it, with its TOML type."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, datetime.date | datetime.time):
        return f"{value} (date or time)"
    word = _WORDS.get(type(value), type(value).__name__)
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return f"{escape(shown, limit=60)} ({word})"


def is_name(text: str) -> bool:
    """True for names of runs, roles, views, terms and players: safe in paths and on terminals."""
    return _NAME.fullmatch(text) is not None


def is_clean(text: str) -> bool:
    """True if a string holds no control, bidi or other invisible character but tab and newline."""
    return all(letter.isprintable() or letter in "\t\n" for letter in text)
