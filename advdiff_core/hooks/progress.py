"""How far a run is: a bar on a terminal, a plain line now and then elsewhere; both on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from advdiff_core.errors import escape
from advdiff_core.hooks.specs import VALIDATED, RunInfo, hookimpl
from advdiff_core.hooks.terminal import say, shown

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Progress", "Speed", "clock", "plain_line", "shown_metrics", "validation_line"]

#: Seconds between two plain lines.
QUIET = 5.0
#: Log ticks that the speed is measured over.
WINDOW = 12
MAX_SHOWN = 4


class Speed:
    """Images per second over the last few ticks, and the time left.

    Args:
        nimg: Images seen at the start.
        now: Time of the start, seconds on any steady clock.
    """

    def __init__(self, nimg: int, now: float) -> None:
        self._ticks: deque[tuple[float, int]] = deque([(now, nimg)], maxlen=WINDOW)

    def tick(self, nimg: int, now: float) -> None:
        """Note that `nimg` images were seen by `now`."""
        self._ticks.append((now, nimg))

    @property
    def rate(self) -> float:
        """Images per second; 0 before it is known."""
        (begin, first), (end, last) = self._ticks[0], self._ticks[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def left(self, images: int) -> float | None:
        """Seconds until `images` images are seen; None before it is known."""
        missing = max(0, images - self._ticks[-1][1])
        return missing / self.rate if self.rate > 0 else None


def clock(seconds: float | None) -> str:
    """`4:07`, `1:02:33`; `-:--` for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_metrics(metrics: Mapping[str, float], most: int = MAX_SHOWN) -> str:
    """The losses (or else the first numbers) as `denoise 0.0213  adv 0.1`, at most `most`."""
    losses = {name.rpartition("/")[2]: v for name, v in metrics.items() if name.startswith("loss")}
    chosen = list((losses or dict(metrics)).items())[:most]
    return "  ".join(f"{escape(name, limit=24)} {value:.4g}" for name, value in chosen)


def used(metrics: Mapping[str, float]) -> str:
    """`mfu 41 %`: model operations against the matrix rate of the machine; "" if not measured."""
    return f"mfu {100 * metrics['mfu']:.3g} %" if "mfu" in metrics else ""


def plain_line(run: RunInfo, nimg: int, speed: Speed, metrics: Mapping[str, float]) -> str:
    """One line of progress without any control character."""
    share = 100 * nimg // run.images if run.images else 100
    parts = [
        f"{nimg:,}/{run.images:,} images ({share} %)",
        f"{speed.rate:.3g} images/s" if speed.rate < 100 else f"{speed.rate:,.0f} images/s",
        used(metrics),
        f"{clock(speed.left(run.images))} left",
        shown_metrics(metrics),
    ]
    return "  ".join(part for part in parts if part)


def validation_line(run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> str:
    """What a measurement during the training found, the number that decides first."""
    found = {n.removeprefix(VALIDATED): v for n, v in metrics.items() if n.startswith(VALIDATED)}
    decides = run.recipe.get("validate", {}).get("best", "")
    order = sorted(found, key=lambda name: name != decides)
    return f"validation at {nimg:,} images: {shown_metrics({n: found[n] for n in order})}"


@final
class Progress:
    """A rich bar where stderr is a terminal, else a line at most every five seconds."""

    def __init__(self) -> None:
        self._speed = Speed(0, 0.0)
        self._begin = 0.0
        self._said = -QUIET
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Begin to count."""
        self._begin = time.monotonic()
        self._speed = Speed(run.nimg, self._begin)
        going_on = f" from {run.nimg:,}" if run.nimg else ""
        say(
            f"advdiff: {shown(run.folder)}: training to {run.images:,} images{going_on} "
            f"on {escape(run.device)}, {run.batch:,} per step; Ctrl-C saves and stops"
        )
        if _is_terminal():
            self._open_bar(run)

    @hookimpl
    def metrics_logged(self, run: RunInfo, nimg: int, metrics: Mapping[str, float]) -> None:
        """Show how far it is, or what was measured."""
        if any(name.startswith(VALIDATED) for name in metrics):
            self._say(validation_line(run, nimg, metrics))
            return
        now = time.monotonic()
        self._speed.tick(nimg, now)
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                completed=nimg,
                speed="  ".join(filter(None, (f"{self._speed.rate:,.0f} images/s", used(metrics)))),
                left=clock(self._speed.left(run.images)),
                losses=shown_metrics(metrics, self._room()),
            )
        elif now - self._said >= QUIET:
            self._said = now
            say(plain_line(run, nimg, self._speed, metrics))

    @hookimpl
    def checkpoint_saved(self, nimg: int, path: Path) -> None:
        """Say so where there is no bar."""
        if self._bar is None:
            say(f"checkpoint at {nimg:,} images: {shown(path)}")

    @hookimpl
    def run_finished(self, run: RunInfo, result: Any) -> None:
        """Fill the bar and say how long it took."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=result.nimg, left="0:00")
        self.run_closed()
        seconds = time.monotonic() - self._begin
        rate = (result.nimg - run.nimg) / seconds if seconds > 0 else 0.0
        say(f"{result.nimg - run.nimg:,} images in {clock(seconds)} ({rate:,.0f} images/s)")

    @hookimpl
    def run_closed(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, line: str) -> None:
        """A line that stays, above the bar if there is one."""
        if self._bar is None:
            say(line)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _room(self) -> int:
        """How many losses fit beside the rest."""
        width = self._bar.console.width if self._bar is not None else 0
        return min(MAX_SHOWN, max(1, (width - 62) // 22))

    def _open_bar(self, run: RunInfo) -> None:
        bar = _new_bar()
        fields: dict[str, Any] = {"speed": "", "left": "-:--", "losses": ""}
        self._task = bar.add_task("", total=run.images, completed=run.nimg, **fields)
        bar.start()
        self._bar = bar


def _is_terminal() -> bool:
    stream = sys.stderr
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def _new_bar() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar

    return Bar(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TextColumn("{task.fields[left]} left", markup=False),
        TextColumn("{task.fields[losses]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=4,
        redirect_stdout=False,
    )
