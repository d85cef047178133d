"""`--nproc N`: starts the processes of a run, watches them, and says which one failed and why.

Torchrun's place on one machine. It speaks for all processes: one line for what went wrong first,
not one from each, and the exit code of that.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, field

from advdiff_core.engine import launched
from advdiff_core.errors import AdvdiffError, Interrupted, LostPeerError, one_line
from advdiff_core.hooks.terminal import say, shown

__all__ = ["launch"]

POLL = 0.05
#: Seconds after the first failure at which the others are asked to stop, and made to.
ASK, MAKE = 4.0, 8.0
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_DONE = (0, Interrupted.exit_code)


@define(eq=False)
class _Child:
    """One process of the run."""

    rank: int
    process: subprocess.Popen[bytes]
    ended: float = 0.0
    stopped: bool = False

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.process.returncode

    @property
    def failed(self) -> bool:
        """Whether it ended on its own account, and neither done nor on request."""
        return self.code is not None and self.code not in _DONE and not self.stopped

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


@define(eq=False)
class _Launcher:
    """The processes of one command.

    Attributes:
        children: The processes, in order of rank.
        reports: Where they leave what there is to say.
    """

    children: list[_Child]
    reports: Path
    _failed: float = field(default=0.0, init=False)

    def wait(self) -> None:
        """Until all have ended; the rest of them are stopped once one has failed."""
        while self._running():
            self._look()
            time.sleep(POLL)
        self._look()

    def _running(self) -> int:
        """Processes that have not ended; each is asked."""
        return sum(child.process.poll() is None for child in self.children)

    def _look(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.code is not None and not child.ended:
                child.ended = now
                if child.failed and not self._failed:
                    self._failed = now
        since = now - self._failed if self._failed else 0.0
        for child in self.children:
            if child.code is None and since > MAKE:
                child.send(signal.SIGKILL)
            elif child.code is None and since > ASK and not child.stopped:
                child.stopped = True
                child.send(signal.SIGTERM)

    def forward(self, number: int, frame: Any) -> None:
        """Pass a signal on to all: a first one stops the run after its step, a second at once."""
        del frame
        for child in self.children:
            child.send(number)

    def verdict(self) -> int:
        """Say what happened; returns the exit code."""
        killed = [one for one in self.children if one.failed and (one.code or 0) < 0]
        if killed:
            return self._say_killed(min(killed, key=lambda one: one.ended))
        found = [(one, launched.read_report(self.reports, one.rank)) for one in self.children]
        told = [(one, note) for one, note in found if note is not None]
        if told:
            return self._say_told(told)
        codes = [one.code for one in self.children if one.code]
        return codes[0] if codes else 0

    def _say_killed(self, child: _Child) -> int:
        name = signal.Signals(-(child.code or 0)).name
        message = f"ended by {name} (exit code {child.code}); the other processes were stopped"
        memory = "; was memory short?" if name == "SIGKILL" else ""
        where = f"process {child.rank} (pid {child.process.pid})"
        return self._say_lost(LostPeerError(message + memory, code="X01", where=where))

    def _say_told(self, told: Sequence[tuple[_Child, dict[str, Any]]]) -> int:
        # Who lost another process is not the one that failed.
        first = min(told, key=lambda pair: (pair[1]["lost"], pair[1]["time"]))
        child, note = first
        for line in note["lines"]:
            say(line)
        if note["lost"]:
            return self._say_lost(None)
        alone = all(other["lines"] != note["lines"] for one, other in told if one is not child)
        if alone and note["code"] not in _DONE and len(self.children) > 1:
            say(f"advdiff: process {child.rank} ended with {note['code']}; the others were stopped")
        return int(note["code"])

    def _say_lost(self, error: AdvdiffError | None) -> int:
        """Say how to go on; returns the code for whether that is possible."""
        folder = launched.read_folder(self.reports)
        kept = folder is not None and _has_checkpoint(folder)
        fix = f"go on with: advdiff train --resume {shown(str(folder))}" if kept else ""
        fix = fix or "nothing was saved yet: start it again"
        say(
            f"advdiff: {fix}"
            if error is None
            else one_line(error.message, code=error.code, where=error.where, fix=fix)
        )
        return Interrupted.exit_code if kept else LostPeerError.exit_code


def launch(args: Sequence[str], count: int) -> int:
    """Run `advdiff` with these arguments in `count` processes; returns the exit code.

    Args:
        args: Arguments without the program's name.
        count: Number of processes.
    """
    with tempfile.TemporaryDirectory(prefix="advdiff-") as folder, _listening() as listener:
        reports = Path(folder)
        children: list[_Child] = []
        launcher = _Launcher(children, reports)
        with _signals_forwarded(launcher):
            try:
                for rank in range(count):
                    process = _start(args, rank, count, listener, reports)
                    # One by one: should a later one not start, these are known and ended.
                    children += [_Child(rank, process)]
                launcher.wait()
            finally:
                for child in children:
                    child.send(signal.SIGKILL)
        return launcher.verdict()


@contextmanager
def _listening() -> Iterator[socket.socket]:
    """A socket that is open from the start: no other program can take its port meanwhile."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener


def _start(
    args: Sequence[str], rank: int, count: int, listener: socket.socket, reports: Path
) -> subprocess.Popen[bytes]:
    threads = max(len(os.sched_getaffinity(0)) // count, 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        # What torch's stores say of a process that is gone is our line to say.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **os.environ,
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listener.getsockname()[1]), launched.REPORTS: str(reports),
        launched.PARENT: str(os.getpid()), launched.LISTENER: str(listener.fileno()),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "advdiff_core", *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=None if rank == 0 else subprocess.DEVNULL,
        pass_fds=() if rank else (listener.fileno(),),
        # Ctrl-C reaches the launcher alone, which passes it on once.
        process_group=0,
    )


@contextmanager
def _signals_forwarded(launcher: _Launcher) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, launcher.forward) for number in _FORWARDED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _has_checkpoint(run: Path) -> bool:
    folder = run / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())
