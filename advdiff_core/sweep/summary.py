"""What a sweep has found: a row per run, and per setting its mean and range over seeds."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from advdiff_core.report.facts import number
from advdiff_core.report.measures import main_names
from advdiff_core.sweep.folder import Status, SweepDir
from advdiff_core.sweep.grid import SEED, short_keys

__all__ = ["Group", "Row", "Summary", "summary_of"]

#: Numbers of a log that say nothing about how good a run is.
GRADIENTS = "grad_norm/"


@frozen(kw_only=True)
class Row:
    """One run.

    Attributes:
        name: Name of the point.
        settings: The value of each key that varies.
        state: `not begun`, `running`, `stopped` or `finished`.
        nimg: Images seen.
        numbers: Losses and metrics of its end, by name.
        run: Its folder; "" if it has none.
        protocols: How the metrics were measured.
    """

    name: str
    settings: Mapping[str, str]
    state: str
    nimg: int
    numbers: Mapping[str, float]
    run: str
    protocols: str = ""

    @classmethod
    def of(cls, status: Status) -> Row:
        """A run as its folder tells it."""
        point, record = status.point, status.record
        if record is None:
            return cls(
                name=point.name, settings=point.settings, state=status.state, nimg=0, numbers={},
                run="",
            )  # fmt: skip
        losses = record.evaluation.get("losses")
        numbers = {**(losses if isinstance(losses, dict) else {}), **record.metrics}
        return cls(
            name=point.name, settings=point.settings, state=status.state, nimg=record.nimg,
            numbers=numbers, run=str(record.folder),
            protocols=json.dumps(record.evaluation.get("protocols"), sort_keys=True),
        )  # fmt: skip


@frozen(kw_only=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        settings: What they have in common.
        rows: The runs.
    """

    settings: Mapping[str, str]
    rows: tuple[Row, ...]

    def values(self, name: str) -> list[float]:
        """A number of each run that has it."""
        return [row.numbers[name] for row in self.rows if name in row.numbers]


@frozen(kw_only=True)
class Summary:
    """A sweep's runs.

    Attributes:
        keys: Keys that vary, seeds left out.
        rows: The runs, in the order of the grid.
        groups: The same by settings.
        names: Losses and metrics that some run has.
    """

    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    names: tuple[str, ...]

    @property
    def seeds(self) -> bool:
        """Whether settings were repeated."""
        return any(len(group.rows) > 1 for group in self.groups)

    @property
    def finished(self) -> int:
        """Runs that are finished."""
        return sum(row.state == "finished" for row in self.rows)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows: a row per setting, with mean and range over its seeds."""
        head = [*short_keys(self.keys), "runs" if self.seeds else "state", *self.names]
        return head, [self._group(group) for group in self.groups]

    def _group(self, group: Group) -> list[str]:
        done = sum(row.state == "finished" for row in group.rows)
        state = f"{done} of {len(group.rows)}" if self.seeds else group.rows[0].state
        cells = [group.settings[key] for key in self.keys]
        return [*cells, state, *(_spread(group.values(name)) for name in self.names)]

    def runs(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows: a row per run."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row.settings))
        head = ["run", *short_keys(keys), "state", "images", *self.names]
        return head, [
            [
                row.name, *(row.settings[key] for key in keys), row.state, number(row.nimg),
                *(number(row.numbers.get(name, "-")) for name in self.names),
            ]
            for row in self.rows
        ]  # fmt: skip

    def notes(self) -> list[str]:
        """Why numbers of one column may not be comparable."""
        finished = [row for row in self.rows if row.state == "finished"]
        notes = []
        missing = len(self.rows) - len(finished)
        if missing:
            notes.append(f"{missing} run{'s are' if missing > 1 else ' is'} not finished.")
        if len({row.protocols for row in finished}) > 1:
            notes.append(
                "The metrics were measured by different protocols: compare only numbers whose "
                "protocols are the same."
            )
        return notes

    def as_json(self) -> dict[str, Any]:
        """For programs: every run, and mean, lowest and highest over the seeds of each setting."""
        return {
            "keys": list(self.keys),
            "runs": [
                {
                    "name": row.name, "settings": dict(row.settings), "state": row.state,
                    "nimg": row.nimg, "numbers": dict(row.numbers), "run": row.run,
                }
                for row in self.rows
            ],
            "settings": [
                {
                    "settings": dict(group.settings),
                    "numbers": {
                        name: _three(group.values(name)) for name in self.names if
                        group.values(name)
                    },
                }
                for group in self.groups
            ],
        }  # fmt: skip

    def as_csv(self) -> str:
        """Every run and every number, unrounded."""
        keys = list(dict.fromkeys(key for row in self.rows for key in row.settings))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", *keys, "state", "nimg", *self.names, "folder"])
        for row in self.rows:
            numbers = [row.numbers.get(name, "") for name in self.names]
            settings = [row.settings[key] for key in keys]
            writer.writerow([row.name, *settings, row.state, row.nimg, *numbers, row.run])
        return text.getvalue()


def summary_of(sweep: SweepDir) -> Summary:
    """Read what the runs of a sweep have left in their folders.

    Raises:
        DataError: If a run's recipe cannot be read.
    """
    rows = tuple(Row.of(sweep.status(point)) for point in sweep.points)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        common = {key: value for key, value in row.settings.items() if key != SEED}
        groups.setdefault(json.dumps(common, sort_keys=True), []).append(row)
    return Summary(
        keys=tuple(axis.key for axis in sweep.axes if axis.varies and axis.key != SEED),
        rows=rows,
        groups=tuple(
            Group(settings=json.loads(key), rows=tuple(found)) for key, found in groups.items()
        ),
        names=tuple(_names(rows)),
    )


def _names(rows: Sequence[Row]) -> list[str]:
    """Losses first, then metrics of samples; those of the data beside them are left out."""
    found = {name for row in rows for name in main_names(row.numbers)}
    found = {name for name in found if not name.startswith(GRADIENTS)}
    return sorted(found, key=lambda name: (not name.startswith("loss"), name))


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return number(values[0])
    low, high = number(min(values)), number(max(values))
    return f"{number(statistics.fmean(values))} ({low} to {high})"


def _three(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
