"""One sweep from where it is to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from attrs import frozen

from advdiff_core.errors import AdvdiffError
from advdiff_core.sweep.folder import Status, SweepDir
from advdiff_core.sweep.grid import Point
from advdiff_core.sweep.launch import Job, Launcher, Outcome, last_line

__all__ = ["Failure", "RunsFailedError", "work_off"]

#: As runs end that were told to stop: saved, or killed before there was anything to save.
STOPPED = (75, -15, 143)


@frozen(kw_only=True)
class Failure:
    """A run that ended without being finished.

    Attributes:
        point: The point.
        code: Exit code of its process.
        line: The last line it printed.
    """

    point: Point
    code: int
    line: str


class RunsFailedError(AdvdiffError):
    """Some runs of a sweep failed; the others are done.

    The exit code is that of the first of them, 128 + n for one that signal n killed.

    Args:
        failures: The runs that failed, at least one.
        sweep: The sweep.
    """

    def __init__(self, failures: Sequence[Failure], sweep: SweepDir) -> None:
        first = failures[0]
        count, of = len(failures), len(sweep.points)
        message = f"{count} of {of} runs failed, the first: {first.point.name}"
        fix = f"see {sweep.log(first.point)}, then go on with: advdiff sweep --resume {sweep.path}"
        super().__init__(message, where=str(sweep.path), fix=fix)
        self.exit_code = first.code if first.code > 0 else 128 - first.code


def work_off(
    sweep: SweepDir, launcher: Launcher, *, stop: Callable[[], bool], tell: Callable[[str], None]
) -> list[Failure]:
    """Run every point that is not finished.

    Args:
        sweep: The sweep.
        launcher: Where runs are made.
        stop: Whether they are to save and end; asked now and then.
        tell: Takes a line about each event.

    Returns:
        The runs that failed. Those that were stopped are not among them.
    """
    board = _Board(sweep=sweep, tell=tell)
    jobs = [_job(sweep, one.point) for one in board.open]
    launcher.run(jobs, stop=stop, began=board.began, ended=board.ended)
    return board.failures


def _job(sweep: SweepDir, point: Point) -> Job:
    # One command for the beginning and for going on, so that a scheduler may run it again.
    command = (
        sys.executable, "-m", "advdiff_core", "sweep", "--resume", str(sweep.path),
        "--only", point.name,
    )  # fmt: skip
    return Job(name=point.name, command=command, log=sweep.log(point))


class _Board:
    """What is told of the runs, and what has become of them."""

    def __init__(self, *, sweep: SweepDir, tell: Callable[[str], None]) -> None:
        self.sweep = sweep
        self.tell = tell
        self.points = {point.name: point for point in sweep.points}
        statuses = [sweep.status(point) for point in sweep.points]
        self.open = [one for one in statuses if one.state != "finished"]
        self.done = len(statuses) - len(self.open)
        self.failures: list[Failure] = []

    def began(self, job: Job) -> None:
        """Say that a run begins or goes on."""
        before = self.sweep.status(self.points[job.name]).record
        seen = f" from {before.nimg:,} images" if before is not None and before.nimg else ""
        self.tell(f"{job.name}: started{seen}")

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Say how a run ended."""
        point = self.points[job.name]
        status = self.sweep.status(point)
        if outcome.code == 0 and status.state == "finished":
            self.done += 1
            self.tell(self._finished(status, outcome))
        elif outcome.code in STOPPED:
            self.tell(f"{job.name}: stopped{_saved(status)}")
        else:
            line = last_line(job.log)
            self.failures.append(Failure(point=point, code=outcome.code, line=line))
            self.tell(f"{job.name}: failed with exit code {outcome.code}: {line or job.log}")

    def _finished(self, status: Status, outcome: Outcome) -> str:
        of = f"({self.done} of {len(self.points)})"
        return f"{status.point.name}: finished in {outcome.seconds:.0f} s {of}"


def _saved(status: Status) -> str:
    nimg = status.record.nimg if status.record is not None else 0
    return f" at {nimg:,} images" if nimg else " before its first step"
