"""The grid of a sweep: `-s key=value,value` as axes, their product as points with names."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from attrs import frozen

from advdiff_core.errors import UsageError, escape
from advdiff_core.recipe.overrides import key_and_value

__all__ = [
    "MAX_POINTS",
    "SEED",
    "Axis",
    "Point",
    "axes_of",
    "points_of",
    "short_keys",
    "split_values",
]

#: Runs of one sweep: more is a mistake in a grid rather than a wish.
MAX_POINTS = 10_000
#: The key that repetitions of one experiment differ in.
SEED = "run.seed"
WHERE = "advdiff sweep"
#: Longest name of a run, and of one value in it.
MAX_NAME, MAX_VALUE = 56, 20
_OPEN, _CLOSE = "[{", "]}"


@frozen(kw_only=True)
class Axis:
    """A key and its values.

    Attributes:
        key: Dotted key of the recipe.
        values: TOML texts, in the order given; one if the key is the same in all runs.
    """

    key: str
    values: tuple[str, ...]

    @property
    def varies(self) -> bool:
        """Whether runs differ in it."""
        return len(self.values) > 1


@frozen(kw_only=True)
class Point:
    """One run of a sweep.

    Attributes:
        name: Name of the run, unlike that of any other point.
        overrides: `key=value` texts.
        settings: The value of each key that varies.
    """

    name: str
    overrides: tuple[str, ...]
    settings: Mapping[str, str]


def axes_of(arguments: Sequence[str]) -> tuple[Axis, ...]:
    """The axes that arguments `key=value,value` name, in their order.

    Args:
        arguments: Texts as after `-s`; a comma inside brackets or quotes belongs to its value.

    Raises:
        RecipeError: R16 for what is not `key=value`.
        UsageError: For a key named twice, a value named twice, or an empty value.
    """
    axes = tuple(_axis(argument) for argument in arguments)
    for key, count in Counter(axis.key for axis in axes).items():
        if count > 1:
            fix = f"write -s {key}=first,second"
            raise UsageError(f"-s {key} is given {count} times", where=WHERE, fix=fix)
    return axes


def _axis(argument: str) -> Axis:
    key, text = key_and_value(argument)
    values = split_values(text)
    if "" in values:
        message = f"-s {escape(argument, limit=80)} has an empty value"
        raise UsageError(message, where=WHERE, fix=f'write -s {key}=first,second, or "" for text')
    for value, count in Counter(values).items():
        if count > 1:
            message = f"-s {key} has the value {escape(value, limit=40)} {count} times"
            fix = "name it once; to repeat runs use --seeds"
            raise UsageError(message, where=WHERE, fix=fix)
    return Axis(key=key, values=values)


def split_values(text: str) -> tuple[str, ...]:
    """The values in a text, at the commas outside brackets, braces and quotes.

    Args:
        text: What is behind the `=`.
    """
    parts, depth, quote, start = [], 0, "", 0
    escaped = False
    for place, letter in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            # Only the strings of TOML in double quotes have escapes.
            escaped = letter == "\\" and quote == '"'
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "," and depth == 0:
            parts.append(text[start:place].strip())
            start = place + 1
        else:
            depth += (letter in _OPEN) - (letter in _CLOSE)
    return (*parts, text[start:].strip())


def points_of(axes: Sequence[Axis]) -> tuple[Point, ...]:
    """Every combination of values, the last axis fastest.

    Raises:
        UsageError: For more than `MAX_POINTS`.
    """
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_POINTS:
        message = f"the grid has {count:,} runs, the most is {MAX_POINTS:,}"
        raise UsageError(message, where=WHERE, fix="give fewer values, or several sweeps")
    rows = list(itertools.product(*(axis.values for axis in axes)))
    names = _unique([_label(axes, row) for row in rows])
    return tuple(
        Point(
            name=name,
            overrides=tuple(f"{axis.key}={value}" for axis, value in zip(axes, row, strict=True)),
            settings={
                axis.key: value for axis, value in zip(axes, row, strict=True) if axis.varies
            },
        )
        for name, row in zip(names, rows, strict=True)
    )


def _label(axes: Sequence[Axis], row: Sequence[str]) -> str:
    """`weight-0.3_seed-1`: what a run folder can be called."""
    varying = [(axis.key, value) for axis, value in zip(axes, row, strict=True) if axis.varies]
    names = short_keys([key for key, _ in varying])
    parts = [
        f"{name}-{_plain(value)[:MAX_VALUE]}"
        for name, (_, value) in zip(names, varying, strict=True)
    ]
    return "_".join(parts)[:MAX_NAME].strip("-_.") or "run"


def short_keys(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or the whole key where two would be called the same."""
    lasts = [_plain(key.rpartition(".")[2]) for key in keys]
    counts = Counter(lasts)
    return [
        last if counts[last] == 1 else _plain(key) for key, last in zip(keys, lasts, strict=True)
    ]


def _plain(text: str) -> str:
    """With only what names may hold."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def _unique(names: Sequence[str]) -> list[str]:
    """The same names, with the number of the point behind those that come more than once."""
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name}_{number:05d}" for number, name in enumerate(names)
    ]
