"""The numbers of an evaluation, each beside what it was measured on, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import define, field

from advdiff_core.report.facts import clean, number

__all__ = ["COLUMNS", "Group", "Row", "groups_of", "main_names", "protocol_of"]

#: What a number may be measured on: by convention `x`, `x_data` and `x_clean`.
COLUMNS = ("samples", "training data", "clean data")
_SUFFIXES = {"_data": 1, "_clean": 2}
UNKNOWN = "Its protocol was not stored: do not compare these numbers."


@define(kw_only=True)
class Row:
    """One quantity: its value on samples, on data as seen, on clean data; "" where unknown."""

    name: str
    cells: list[str]


@define(kw_only=True)
class Group:
    """Quantities of one protocol.

    Attributes:
        columns: Titles of the cells, those without any value left out.
        rows: The quantities.
        protocol: How they were measured, on one line.
    """

    columns: list[str]
    rows: list[Row]
    protocol: str = field(default="")


def _base(name: str, known: Mapping[str, Any]) -> tuple[str, int]:
    """The quantity a number is of, and its column."""
    for suffix, column in _SUFFIXES.items():
        head, found, tail = name.rpartition(suffix)
        if found and head + tail in known:
            return head + tail, column
    return name, 0


def main_names(metrics: Mapping[str, float]) -> list[str]:
    """Quantities of the samples, without those of the data beside them."""
    return [name for name in sorted(metrics) if _base(name, metrics)[1] == 0]


def groups_of(evaluation: Mapping[str, Any]) -> list[Group]:
    """The metrics of a run by protocol.

    Args:
        evaluation: Content of `evaluation.json`.
    """
    found = evaluation.get("metrics")
    metrics: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    by_protocol: dict[str | None, dict[str, list[str]]] = {}
    for name in sorted(metrics):
        base, column = _base(name, metrics)
        rows = by_protocol.setdefault(protocol_of(base, evaluation), {})
        rows.setdefault(base, [""] * len(COLUMNS))[column] = _cell(name, evaluation)
    return [_group(use, rows, evaluation) for use, rows in by_protocol.items()]


def _cell(name: str, evaluation: Mapping[str, Any]) -> str:
    """The number, and where it is a mean over ranges of seeds, the least and the largest."""
    text = number(evaluation["metrics"][name])
    repeats = evaluation.get("repeats")
    known = repeats.get(name) if isinstance(repeats, Mapping) else None
    if not isinstance(known, Mapping) or not known.get("spread"):
        return text
    return f"{text} ({number(known.get('min'))} to {number(known.get('max'))})"


def _group(use: str | None, rows: dict[str, list[str]], evaluation: Mapping[str, Any]) -> Group:
    filled = [i for i in range(len(COLUMNS)) if any(cells[i] for cells in rows.values())]
    columns = [COLUMNS[i] if len(filled) > 1 else "value" for i in filled]
    return Group(
        columns=columns,
        rows=[
            Row(name=clean(name), cells=[cells[i] for i in filled]) for name, cells in rows.items()
        ],
        protocol=_protocol_text(use, evaluation),
    )


def protocol_of(metric: str, evaluation: Mapping[str, Any]) -> str | None:
    """The metric component a number comes from: as stored, or that with most words in common.

    Args:
        metric: Name of the number.
        evaluation: Content of `evaluation.json`.
    """
    owners, protocols = evaluation.get("owners"), evaluation.get("protocols")
    if not isinstance(protocols, Mapping):
        return None
    if isinstance(owners, Mapping) and owners.get(metric) in protocols:
        return str(owners[metric])
    words = set(_words(metric))
    shared = {use: len(words & set(_words(use.rpartition(":")[2]))) for use in protocols}
    best = max(shared.values(), default=0)
    found = [use for use, count in shared.items() if count == best]
    return found[0] if best and len(found) == 1 else None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.casefold()) if word]


def _protocol_text(use: str | None, evaluation: Mapping[str, Any]) -> str:
    protocol = evaluation["protocols"].get(use) if use is not None else None
    if not isinstance(protocol, Mapping) or not protocol:
        return UNKNOWN
    parts = (f"{key} {_value(value)}" for key, value in protocol.items() if value is not None)
    return clean(f"{use}: {'; '.join(parts)}.", limit=2400)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(one) for one in value) + "]"
    return number(value)
