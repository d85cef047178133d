"""The folder of a sweep: its points, their recipes and runs, and how far each of them is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import make_dirs
from advdiff_core.engine.lock import Lock
from advdiff_core.engine.rundir import RunDir, new_run
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.errors import DataError
from advdiff_core.recipe.recipe import Recipe
from advdiff_core.report.record import RunRecord, read_record
from advdiff_core.sweep.grid import Axis, Point

__all__ = ["FILE", "Status", "SweepDir", "new_sweep", "open_sweep"]

#: What makes a folder that of a sweep.
FILE = "sweep.json"
VERSION = 1
_MAX_BYTES = 2**26
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@frozen(kw_only=True)
class Status:
    """How far a point is.

    Attributes:
        point: The point.
        state: `not begun`, `running`, `stopped` or `finished`.
        record: Its run; None if it has not begun.
    """

    point: Point
    state: str
    record: RunRecord | None = None


class SweepDir:
    """The folder `sweeps/NNNNN-name/`.

    It holds `sweep.json` (axes and points), `recipes/` (the whole recipe of each point, fixed when
    the sweep began), `runs/` (run folders), `logs/` (what each run printed) and the summary.

    Args:
        path: The folder, which exists.
        axes: Keys and their values.
        points: The runs.
    """

    def __init__(self, path: Path, axes: Sequence[Axis], points: Sequence[Point]) -> None:
        self.path = path
        self.axes = tuple(axes)
        self.points = tuple(points)
        self._files = RunDir(path)

    @property
    def runs(self) -> Path:
        """Where run folders are."""
        return self._files.resolve("runs")

    def recipe(self, point: Point) -> Path:
        """The recipe of a point."""
        return self._files.resolve(f"recipes/{point.name}.toml")

    def log(self, point: Point) -> Path:
        """What the process of a point prints."""
        return self._files.resolve(f"logs/{point.name}.log")

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a whole file in the folder, atomically."""
        return self._files.write(name, data)

    def lock(self) -> Lock:
        """Take the sweep for this process.

        Raises:
            StorageError: S08 if another process is at work on it.
        """
        return self._files.lock()

    def run_of(self, point: Point) -> Path | None:
        """The run folder of a point; None if it has none that can be gone on with."""
        ending = f"-{point.name}"
        try:
            found = sorted(path for path in self.runs.iterdir() if path.name.endswith(ending))
        except FileNotFoundError:
            return None
        wanted = re.compile(rf"[0-9]{{5,9}}{re.escape(ending)}")
        # A run that was killed before its recipe was frozen left nothing to go on with.
        whole = [p for p in found if wanted.fullmatch(p.name) and RunDir(p).recipe_lock.is_file()]
        return whole[-1] if whole else None

    def status(self, point: Point) -> Status:
        """How far a point is, from its run folder alone."""
        folder = self.run_of(point)
        if folder is None:
            return Status(point=point, state="not begun")
        record = read_record(folder)
        # What is measured at the end belongs to the run.
        done = record.state != "finished" or record.evaluation
        return Status(point=point, state=record.state if done else "stopped", record=record)


def new_sweep(
    root: Path, name: str, axes: Sequence[Axis], points: Sequence[tuple[Point, Recipe]]
) -> SweepDir:
    """Make the next numbered folder with the recipes of all points.

    Args:
        root: Folder of sweeps; made if missing.
        name: Name of the sweep.
        axes: Keys and their values.
        points: Each point with its recipe.

    Raises:
        StorageError: S03 or S04.
    """
    sweep = SweepDir(new_run(root, name).path, axes, [point for point, _ in points])
    for folder in (sweep.runs, sweep.path / "logs"):
        make_dirs(folder)
    for point, recipe in points:
        sweep.write(f"recipes/{point.name}.toml", recipe.dumps())
    sweep.write(FILE, strict_json.dumps(_as_json(sweep)))
    return sweep


def _as_json(sweep: SweepDir) -> dict[str, Any]:
    return {
        "advdiff_sweep": VERSION,
        "axes": [{"key": axis.key, "values": list(axis.values)} for axis in sweep.axes],
        "points": [
            {"name": p.name, "overrides": list(p.overrides), "settings": dict(p.settings)}
            for p in sweep.points
        ],
    }


def open_sweep(path: Path) -> SweepDir:
    """An existing sweep.

    Raises:
        DataError: S02 if there is none, S15 if its file is damaged.
    """
    file = path / FILE
    if not file.is_file():
        fix = "give the folder that `advdiff sweep` named"
        raise DataError(f"is not a sweep: it has no {FILE}", code="S02", where=str(path), fix=fix)
    found = strict_json.loads(read_bytes(file, limit=_MAX_BYTES), where=str(file))
    try:
        _only(VERSION, found["advdiff_sweep"])
        return SweepDir(path, _axes(found["axes"]), _points(found["points"]))
    except (LookupError, TypeError, ValueError, AttributeError) as cause:
        message = "does not hold what `advdiff sweep` writes"
        raise DataError(message, code="S15", where=str(file), fix="start a new sweep") from cause


def _points(entries: Any) -> tuple[Point, ...]:
    return tuple(
        Point(
            name=_name(one["name"]),
            overrides=tuple(map(_text, one["overrides"])),
            settings={_text(key): _text(value) for key, value in one["settings"].items()},
        )
        for one in entries
    )


def _axes(entries: Any) -> tuple[Axis, ...]:
    return tuple(
        Axis(key=_text(one["key"]), values=tuple(map(_text, one["values"]))) for one in entries
    )


def _only(wanted: int, version: object) -> None:
    if version != wanted:
        raise ValueError("another version")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _name(value: object) -> str:
    name = _text(value)
    if not _NAME.fullmatch(name):
        raise ValueError("not a name")
    return name
