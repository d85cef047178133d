"""Runs of a sweep as processes on this machine: so many at a time, stopped as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from attrs import define, field, frozen

__all__ = ["Job", "Launcher", "Local", "Outcome", "last_line", "run_command", "visible_devices"]

#: Seconds between two looks at the stop flag.
GLANCE = 0.2
#: Of a log, what its last line is looked for in.
TAIL = 4096


@frozen(kw_only=True)
class Job:
    """One run to be made.

    Attributes:
        name: Name of the point.
        command: The command, program first.
        log: File that takes what it prints, behind what is there.
    """

    name: str
    command: tuple[str, ...]
    log: Path


@frozen(kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        code: Exit code of its process; negative for a signal.
        seconds: How long it took.
    """

    code: int
    seconds: float


class Launcher(Protocol):
    """Where jobs run."""

    def run(
        self,
        jobs: Sequence[Job],
        *,
        stop: Callable[[], bool],
        began: Callable[[Job], None],
        ended: Callable[[Job, Outcome], None],
    ) -> None:
        """Run all jobs, or those that began before `stop` said yes.

        Args:
            jobs: The jobs.
            stop: Asked now and then; once it says yes, jobs are told to save and end.
            began: Called when a job is started, in this thread or another.
            ended: Called in this thread when a job has ended.
        """
        ...


def run_command(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a job, in a session of its own: Ctrl-C reaches it through us alone."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            # Both streams go into one file, where the last line should be the last one printed.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment}, start_new_session=True,
        )  # fmt: skip


def visible_devices() -> tuple[str, ...]:
    """Names of the GPUs that processes may use, as `CUDA_VISIBLE_DEVICES` takes them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip())
    # Recipes were checked, so that torch is there already; it asks the driver and starts nothing.
    torch = sys.modules.get("torch")
    return tuple(map(str, range(torch.cuda.device_count()))) if torch is not None else ()


def last_line(log: Path) -> str:
    """The last line of a log; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@define(kw_only=True)
class Local:
    """Processes on this machine.

    Each has a GPU of its own while there are as many as slots, and else its share of the cores.

    Attributes:
        slots: How many run at a time.
        devices: GPUs they are spread over.
    """

    slots: int
    devices: tuple[str, ...] = field(factory=visible_devices)
    _live: dict[str, subprocess.Popen[bytes]] = field(factory=dict, init=False)
    _gate: threading.Lock = field(factory=threading.Lock, init=False)
    _closed: bool = field(default=False, init=False)

    def run(
        self,
        jobs: Sequence[Job],
        *,
        stop: Callable[[], bool],
        began: Callable[[Job], None],
        ended: Callable[[Job, Outcome], None],
    ) -> None:
        """See `Launcher.run`."""
        free: SimpleQueue[int] = SimpleQueue()
        for slot in range(self.slots):
            free.put(slot)

        def work(job: Job) -> Outcome | None:
            slot = free.get()
            try:
                return self._one(job, slot, began)
            finally:
                free.put(slot)

        with ThreadPoolExecutor(self.slots, thread_name_prefix="advdiff-sweep") as pool:
            waiting = {pool.submit(work, job): job for job in jobs}
            try:
                self._watch(waiting, stop, ended)
            except BaseException:
                self._end()
                raise

    def _watch(
        self,
        waiting: dict[Future[Outcome | None], Job],
        stop: Callable[[], bool],
        ended: Callable[[Job, Outcome], None],
    ) -> None:
        while waiting:
            done, _ = wait(waiting, timeout=GLANCE, return_when=FIRST_COMPLETED)
            for future in done:
                job, outcome = waiting.pop(future), future.result()
                if outcome is not None:
                    ended(job, outcome)
            if stop():
                self._end()

    def _one(self, job: Job, slot: int, began: Callable[[Job], None]) -> Outcome | None:
        """Run a job to its end; None if the sweep was stopped before."""
        start = time.monotonic()
        with self._gate:
            if self._closed:
                return None
            began(job)
            process = self._live[job.name] = run_command(job, self.environment(slot))
        code = process.wait()
        with self._gate:
            del self._live[job.name]
        return Outcome(code=code, seconds=time.monotonic() - start)

    def environment(self, slot: int) -> dict[str, str]:
        """What the processes of a slot find in their environment beside ours."""
        if self.devices:
            return {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]}
        if self.slots == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, _cores() // self.slots))}

    def _end(self) -> None:
        """Start no more, and ask those that run to save and end, once."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            for process in self._live.values():
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
