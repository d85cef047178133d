"""The summary of a sweep as one HTML file: its table, and each number over the first key."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from advdiff_core.report.charts import Series, legend, line_chart
from advdiff_core.report.facts import clean
from advdiff_core.report.html import filled
from advdiff_core.sweep.summary import Group, Summary

__all__ = ["render"]


def render(name: str, summary: Summary) -> str:
    """The page, which fetches nothing.

    Args:
        name: Name of the sweep's folder.
        summary: Its runs.
    """
    axis = _numeric_key(summary)
    place: Callable[[Group], float] = _at(summary) if axis is None else _value(axis)
    unit = "the settings, in the order of the table" if axis is None else axis
    lines = _lines(summary, axis)
    return filled("sweep.html.j2", {
        "title": clean(name),
        "lead": f"{summary.finished} of {len(summary.rows)} runs are finished.",
        "legend": legend([label for label, _ in lines]) if len(lines) > 1 else "",
        "charts": _charts(summary, lines, place, unit),
        "unit": clean(unit),
        "seeds": summary.seeds,
        "summary": _table(summary.table(), len(summary.keys) + 1),
        "runs": _table(summary.runs(), 1),
        "notes": summary.notes(),
    })  # fmt: skip


def _table(table: tuple[list[str], list[list[str]]], words: int) -> dict[str, Any]:
    head, rows = table
    cells = [[clean(cell) for cell in row] for row in rows]
    return {"head": [clean(cell) for cell in head], "rows": cells, "words": words}


def _numeric_key(summary: Summary) -> str | None:
    """The first key whose values are all numbers; None if there is none."""
    for key in summary.keys:
        values = [_number(group.settings[key]) for group in summary.groups]
        if None not in values and len(set(values)) > 1:
            return key
    return None


def _number(text: str) -> float | None:
    """A TOML number, or a fraction such as 8/255, as a number."""
    top, _, bottom = text.strip("\"'").partition("/")
    try:
        return float(top.replace("_", "")) / (float(bottom) if bottom else 1.0)
    except (ValueError, ZeroDivisionError):
        return None


def _value(key: str) -> Callable[[Group], float]:
    def place(group: Group) -> float:
        found = _number(group.settings[key])
        assert found is not None
        return found

    return place


def _at(summary: Summary) -> Callable[[Group], float]:
    return lambda group: 1.0 + summary.groups.index(group)


def _lines(summary: Summary, axis: str | None) -> list[tuple[str, list[Group]]]:
    """Settings that differ in the key of the axis alone make a line; each has its label."""
    lines: dict[str, list[Group]] = {}
    for group in summary.groups:
        others = [
            f"{key.rpartition('.')[2]} {value}"
            for key, value in group.settings.items()
            if axis is not None and key != axis
        ]
        lines.setdefault(clean(", ".join(others)), []).append(group)
    return list(lines.items())


def _charts(
    summary: Summary,
    lines: Sequence[tuple[str, list[Group]]],
    place: Callable[[Group], float],
    unit: str,
) -> list[dict[str, Any]]:
    """A chart per number, a line per combination of the other keys."""
    if len(summary.groups) < 2:
        return []
    charts = []
    for name in summary.names:
        series = [
            _series(label, groups, name, place, colour)
            for colour, (label, groups) in enumerate(lines)
        ]
        svg = line_chart(clean(name), series, unit=clean(unit))
        charts += [{"title": clean(name), "svg": svg}] if svg else []
    return charts


def _series(
    label: str, groups: Sequence[Group], name: str, place: Callable[[Group], float], colour: int
) -> Series:
    found = sorted((place(group), group.values(name)) for group in groups if group.values(name))
    repeated = any(len(values) > 1 for _, values in found)
    return Series(
        label=label or name, colour=colour,
        points=[(x, statistics.fmean(values)) for x, values in found],
        spread=[(min(values), max(values)) for _, values in found] if repeated else (),
    )  # fmt: skip
