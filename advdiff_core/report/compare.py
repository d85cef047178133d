"""Several runs side by side: their numbers, what differs in their recipes, spread over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from advdiff_core.report.facts import clean, number
from advdiff_core.report.measures import main_names
from advdiff_core.report.record import RunRecord

__all__ = ["comparison", "differences"]

#: Keys in which repetitions of one experiment may differ.
REPEATED = ("run.seed", "run.name")
MAX_KEYS = 60


def comparison(records: Sequence[RunRecord]) -> dict[str, Any]:
    """A row per run, and per group of runs that differ in their seed alone their mean and range."""
    names = sorted({name for record in records for name in main_names(record.metrics)})
    rows = [
        [clean(one.name), number(one.nimg), *(number(one.metrics.get(n, "-")) for n in names)]
        for one in records
    ]
    rows += [row for group in _repetitions(records) for row in _spread(group, names)]
    return {"head": ["run", "images", *map(clean, names)], "rows": rows, "notes": _notes(records)}


def _repetitions(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        tables = {k: v for k, v in flat(record.recipe) if k not in REPEATED}
        groups.setdefault(json.dumps(tables, sort_keys=True, default=str), []).append(record)
    return [group for group in groups.values() if len(group) > 1]


def _spread(group: Sequence[RunRecord], names: Sequence[str]) -> Iterator[list[str]]:
    columns = {name: [one.metrics[name] for one in group if name in one.metrics] for name in names}
    numbers = ", ".join(clean(one.name.partition("-")[0], limit=12) for one in group)
    title = f"mean of {len(group)} seeds ({numbers})"
    yield [title, "", *(_mean(columns[name]) for name in names)]
    yield ["lowest to highest", "", *(_range(columns[name]) for name in names)]


def _mean(values: Sequence[float]) -> str:
    return number(statistics.fmean(values)) if values else "-"


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}" if values else "-"


def _notes(records: Sequence[RunRecord]) -> list[str]:
    """Why numbers of one column may not be comparable."""
    notes = []
    protocols = {json.dumps(one.evaluation.get("protocols"), sort_keys=True) for one in records}
    if len(protocols) > 1:
        notes.append(
            "The metrics were measured by different protocols (listed with each run): "
            "compare only numbers whose protocols are the same."
        )
    if len({one.nimg for one in records}) > 1:
        notes.append("The runs have seen different numbers of images.")
    return notes


def differences(records: Sequence[RunRecord]) -> dict[str, Any] | None:
    """The keys in which the recipes differ; None if in none."""
    tables = [dict(flat(record.recipe)) for record in records]
    keys = sorted({key for table in tables for key in table})
    changed = [key for key in keys if any(one.get(key) != tables[0].get(key) for one in tables)]
    if not changed:
        return None
    rows = [
        [clean(key), *(clean(table[key], limit=120) if key in table else "-" for table in tables)]
        for key in changed[:MAX_KEYS]
    ]
    if len(changed) > MAX_KEYS:
        rows.append([f"and {len(changed) - MAX_KEYS} more", *("" for _ in tables)])
    return {"head": ["key", *(clean(one.name) for one in records)], "rows": rows}


def flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested tables as dotted keys and values."""
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
