"""Runs of a sweep on a cluster, through the schedulers' own Python libraries.

Nothing is scheduled here: submitit hands jobs to Slurm, Ray to its workers. Either runs one
command, `advdiff sweep --resume SWEEP --only NAME`, which begins a run or goes on with it.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from advdiff_core.errors import UsageError, escape
from advdiff_core.sweep.launch import GLANCE, Job, Outcome, run_command

__all__ = ["Ray", "Submitit", "Task", "require"]

#: Exit code of a job whose scheduler lost it.
LOST = 71


@define
class Task:
    """What a cluster's process does for a job: run its command, and pass on that it has to stop.

    Attributes:
        job: The job.
    """

    job: Job
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __call__(self) -> int:
        """Run the command; returns its exit code."""
        self._process = run_command(self.job, {})
        try:
            return self._process.wait()
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def checkpoint(self) -> Any:
        """The job is preempted or out of time: let the run save, and be put in the queue again."""
        self._stop()
        return importlib.import_module("submitit").helpers.DelayedSubmission(Task(self.job))


@frozen(kw_only=True)
class Submitit:
    """Jobs handed to submitit, which hands them to Slurm.

    Attributes:
        folder: Where submitit keeps its files.
        slots: How many are in the queue at a time; 0 for all.
        options: What `update_parameters` takes, such as `timeout_min` or `slurm_partition`; of
            them `cluster` chooses another executor than that of the machine, such as `local`.
    """

    folder: Path
    slots: int = 0
    options: Mapping[str, Any] = field(factory=dict)

    def run(
        self,
        jobs: Sequence[Job],
        *,
        stop: Callable[[], bool],
        began: Callable[[Job], None],
        ended: Callable[[Job, Outcome], None],
    ) -> None:
        """See `Launcher.run`."""
        executor = self._executor()

        def submit(job: Job) -> Any:
            return executor.submit(Task(job))

        _watch(_Queue(
            submit=submit, done=lambda handle: handle.done(), code=_submitit_code,
            cancel=lambda handle: handle.cancel(check=False),
        ), jobs, self.slots, stop=stop, began=began, ended=ended)  # fmt: skip

    def _executor(self) -> Any:
        submitit = require("submitit")
        options = {**self.options}
        cluster = options.pop("cluster", None)
        with _refusals("submitit"):
            executor = submitit.AutoExecutor(folder=self.folder, cluster=cluster)
            executor.update_parameters(**options)
        return executor


def _submitit_code(handle: Any) -> int:
    try:
        return int(handle.result())
    except Exception:
        # What happened is in submitit's own files, which the line about the run names.
        return LOST


@frozen(kw_only=True)
class Ray:
    """Jobs handed to Ray: a cluster that is there, or one that is started on this machine.

    Attributes:
        slots: How many are handed over at a time; 0 for all.
        options: What `ray.remote` takes, such as `num_cpus` and `num_gpus`; of them `address` is
            that of the cluster.
    """

    slots: int = 0
    options: Mapping[str, Any] = field(factory=dict)

    def run(
        self,
        jobs: Sequence[Job],
        *,
        stop: Callable[[], bool],
        began: Callable[[Job], None],
        ended: Callable[[Job, Outcome], None],
    ) -> None:
        """See `Launcher.run`."""
        ray = require("ray")
        options = {"max_retries": 0, **self.options}
        address = options.pop("address", None)
        with _refusals("ray"):
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        try:
            with _refusals("ray"):
                remote = ray.remote(**options)(_call)
            _watch(_Queue(
                submit=lambda job: remote.remote(Task(job)),
                done=lambda handle: bool(ray.wait([handle], timeout=0)[0]),
                code=lambda handle: _ray_code(ray, handle),
                cancel=ray.cancel,
            ), jobs, self.slots, stop=stop, began=began, ended=ended)  # fmt: skip
        finally:
            ray.shutdown()


def _call(task: Task) -> int:
    return task()


def _ray_code(ray: Any, handle: Any) -> int:
    try:
        return int(ray.get(handle))
    except Exception:
        return LOST


@frozen(kw_only=True)
class _Queue:
    """A scheduler as the loop sees it: handles go in and exit codes come out."""

    submit: Callable[[Job], Any]
    done: Callable[[Any], bool]
    code: Callable[[Any], int]
    cancel: Callable[[Any], None]


def _watch(  # noqa: PLR0913 - the three calls of a launcher among them.
    queue: _Queue,
    jobs: Sequence[Job],
    slots: int,
    *,
    stop: Callable[[], bool],
    began: Callable[[Job], None],
    ended: Callable[[Job, Outcome], None],
) -> None:
    """Hand jobs over while there is room, until all have ended."""
    waiting, live, stopped = list(jobs), dict[str, tuple[Job, Any, float]](), False
    while live or (waiting and not stopped):
        while waiting and not stopped and (not slots or len(live) < slots):
            job = waiting.pop(0)
            began(job)
            live[job.name] = (job, queue.submit(job), time.monotonic())
        time.sleep(GLANCE)
        for job, handle, start in [one for one in live.values() if queue.done(one[1])]:
            del live[job.name]
            ended(job, Outcome(code=queue.code(handle), seconds=time.monotonic() - start))
        if stop() and not stopped:
            stopped = True
            for _, handle, _ in live.values():
                queue.cancel(handle)


def require(name: str) -> Any:
    """The library of a scheduler.

    Args:
        name: "submitit" or "ray".

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        message = f"--on {name} needs {name}, which is not installed"
        fix = f'pip install "advdiff-core[{name}]"'
        raise UsageError(message, where="advdiff sweep", fix=fix) from cause


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """Turn what a library says of wrong options into one line."""
    try:
        yield
    except Exception as error:
        message = f"{name} refuses: {type(error).__name__}: {escape(error, limit=300)}"
        fix = "look at the values of --option"
        raise UsageError(message, where="advdiff sweep", fix=fix) from error
