"""What a run folder says about its run, read without torch and without importing a plugin."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from attrs import field, frozen

from advdiff_core.engine import strict_json
from advdiff_core.engine.best import Standing, read_standing
from advdiff_core.engine.manifest import MAX_JSON, STATE, candidates, read_manifest
from advdiff_core.engine.metrics_log import read_metrics
from advdiff_core.engine.rundir import RunDir, open_run
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.errors import AdvdiffError, DataError, RecipeError
from advdiff_core.recipe.read import read_file
from advdiff_core.report.evaluations import read_robust

__all__ = ["Picture", "RunRecord", "read_record"]

_PICTURE = re.compile(r"([0-9]{1,18})\.png")
_MAX_PICTURE = 32 * 2**20
T = TypeVar("T")


@frozen(kw_only=True)
class Picture:
    """A picture of samples: how many images the model had seen, and the PNG file."""

    nimg: int
    path: Path

    def read(self) -> bytes:
        """The PNG.

        Raises:
            DataError: If it cannot be read.
        """
        return read_bytes(self.path, limit=_MAX_PICTURE)


@frozen(kw_only=True)
class RunRecord:
    """A run as its folder tells it.

    Attributes:
        folder: The folder.
        recipe: The resolved recipe as plain tables, without `[lock]`.
        lock: The table `[lock]`: what the recipe was resolved with.
        rows: Lines of the log, oldest first.
        evaluation: Content of `evaluation.json`: metrics, protocols, nimg; empty if there is none.
        robust: Evaluations under attack: name of the folder, content of its `report.json`.
        checkpoints: Images seen of each complete checkpoint, newest first.
        standing: What the measurements of `[validate]` came to.
        plan: Passes per step, as `advdiff plan --json` gives them; empty if they were not stored.
        provenance: Versions and hardware, from the newest checkpoint.
        pictures: Pictures, oldest first.
        holder: Who is running in it; "" if nobody is.
        problems: What could not be read, one sentence each.
    """

    folder: Path
    recipe: Mapping[str, Any]
    lock: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any]
    robust: tuple[tuple[str, Mapping[str, Any]], ...]
    checkpoints: tuple[int, ...]
    standing: Standing = field(factory=Standing)
    plan: Mapping[str, Any]
    provenance: Mapping[str, Any]
    pictures: tuple[Picture, ...]
    holder: str
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the folder, for example `00003-digits`."""
        return self.folder.resolve().name

    @property
    def images(self) -> int:
        """Images the run is to see."""
        return _whole(self.recipe.get("run", {}).get("images"))

    @property
    def nimg(self) -> int:
        """Images seen, as far as the log and the checkpoints know."""
        logged = _whole(self.rows[-1].get("nimg")) if self.rows else 0
        return max(logged, self.checkpoints[0] if self.checkpoints else 0)

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers of the evaluation by name."""
        found = self.evaluation.get("metrics")
        return {**found} if isinstance(found, dict) else {}

    @property
    def state(self) -> str:
        """`running`, `finished`, `stopped` or `not begun`."""
        if self.holder:
            return "running"
        ended = bool(self.checkpoints) and self.checkpoints[0] >= (self.images or math.inf)
        if ended or self.standing.over:
            return "finished"
        return "stopped" if self.checkpoints or self.rows else "not begun"


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def read_record(folder: Path) -> RunRecord:
    """Read a run folder. What is damaged is left out and named in `problems`.

    Raises:
        DataError: If it is no run folder, or its recipe cannot be read.
    """
    run = open_run(folder)
    tables = _recipe(run)
    lock = tables.pop("lock", {})
    problems: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except AdvdiffError as error:
            problems.append(str(error))
            return otherwise

    return RunRecord(
        folder=folder,
        recipe=tables,
        lock=lock if isinstance(lock, dict) else {},
        rows=attempt(lambda: tuple(_rows(run)), ()),
        evaluation=attempt(lambda: _json(run, "evaluation.json"), {}),
        robust=tuple(read_robust(run.path, problems)),
        plan=attempt(lambda: _json(run, "plan.json"), {}),
        checkpoints=tuple(_checkpoints(run, problems)),
        standing=read_standing(run.checkpoints),
        provenance=attempt(lambda: _provenance(run), {}),
        pictures=tuple(_pictures(run)),
        holder=_holder(run),
        problems=tuple(problems),
    )


def _recipe(run: RunDir) -> dict[str, Any]:
    try:
        return dict(read_file(run.recipe_lock).data)
    except RecipeError as error:
        message = error.faults[0].message
        raise DataError(message, code="S02", where=str(run.recipe_lock)) from error


def _rows(run: RunDir) -> list[dict[str, Any]]:
    return read_metrics(run.metrics) if run.metrics.exists() else []


def _json(run: RunDir, name: str) -> dict[str, Any]:
    path = run.resolve(name)
    if not path.exists():
        return {}
    found = strict_json.loads(read_bytes(path, limit=MAX_JSON), where=str(path))
    if not isinstance(found, dict):
        raise DataError("is not a JSON object", code="S15", where=str(path))
    return found


def _checkpoints(run: RunDir, problems: list[str]) -> list[int]:
    """Images of each checkpoint that is complete by its manifest; its bytes are not hashed here."""
    found: list[int] = []
    for nimg, path in candidates(run.checkpoints):
        try:
            read_manifest(path)
        except DataError as error:
            problems.append(str(error))
        else:
            found.append(nimg)
    return found


def _provenance(run: RunDir) -> dict[str, Any]:
    for _, path in candidates(run.checkpoints):
        state = path / STATE
        if state.exists():
            whole = strict_json.loads(read_bytes(state, limit=MAX_JSON), where=str(state))
            facts = whole.get("meta", {}).get("provenance", {})
            return facts if isinstance(facts, dict) else {}
    return {}


def _pictures(run: RunDir) -> list[Picture]:
    try:
        names = sorted(path.name for path in run.images.iterdir())
    except OSError:
        return []
    found = [(match, name) for name in names if (match := _PICTURE.fullmatch(name))]
    pictures = [Picture(nimg=int(match[1]), path=run.images / name) for match, name in found]
    return sorted(pictures, key=lambda picture: picture.nimg)


def _holder(run: RunDir) -> str:
    """Who holds the lock, by what the lock file says; asking the kernel would mean taking it."""
    try:
        holder = json.loads(read_bytes(run.resolve(".lock"), limit=4096))
        who = f"process {int(holder['pid'])} on {holder['host']} since {holder['since']}"
    except (AdvdiffError, ValueError, LookupError, TypeError):
        return ""
    if holder["host"] == platform.node() and not _is_alive(int(holder["pid"])):
        return ""
    return who


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
