"""The processes that a launcher started together: how they meet, and who is missing when one is."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from attrs import frozen
from torch.distributed import (  # type: ignore[attr-defined]
    PrefixStore,
    Store,
    TCPStore,
    rendezvous,
)

from advdiff_core.engine.launched import LISTENER
from advdiff_core.errors import LostPeerError, UsageError

__all__ = ["Peers", "joined"]

#: Seconds that a process, having lost another one, waits for the others to say that they have, too.
GRACE = 3.0
#: What comes before or after the training may be the work of one process alone, for hours.
PATIENCE = timedelta(days=7)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@frozen(kw_only=True, eq=False)
class Peers:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        timeout: Seconds after which a silent process counts as lost.
        store: Where they leave notes for each other; process 0 keeps it.
        patient: Group for what may take long.
    """

    rank: int
    size: int
    timeout: float
    store: Store
    patient: Any = None

    def introduce(self) -> None:
        """Leave a note on where this process runs."""
        note = {"host": platform.node(), "pid": os.getpid()}
        self.store.set(f"process/{self.rank}", json.dumps(note))

    def lost(self, cause: BaseException) -> LostPeerError:
        """The error for a collective that failed, naming who is missing.

        Every process that is alive finds out sooner or later and says so; the others are missing.
        """
        missing = _within(3 * GRACE, self._missing) or ["process 0 does not answer"]
        timed_out = "timed out" in str(cause).lower() or "timeout" in str(cause).lower()
        waited = f" after {self.timeout:g} s" if timed_out else ""
        message = f"{' and '.join(missing)}{waited}"
        fix = "look at what that process said; run.timeout sets how long it is waited for"
        return LostPeerError(message, code="X03" if timed_out else "X01", fix=fix)

    def _missing(self) -> list[str]:
        return [self._condition(rank) for rank in self._silent()] or ["another process"]

    def _silent(self) -> list[int]:
        """Processes that have not lost anybody, and so do not answer."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        deadline = time.monotonic() + GRACE
        try:
            self.store.set_timeout(timedelta(seconds=GRACE))
            self.store.set(f"lost/{self.rank}", "1")
            while others and time.monotonic() < deadline:
                others = [rank for rank in others if not self.store.check([f"lost/{rank}"])]
                time.sleep(0.05)
        except RuntimeError:
            # The notes were with process 0.
            return [0]
        return others

    def _condition(self, rank: int) -> str:
        """A process and what is known of it, for messages."""
        note: dict[str, Any] = {}
        with suppress(RuntimeError, ValueError):
            note = json.loads(self.store.get(f"process/{rank}"))
        if not note:
            return f"process {rank} does not answer"
        where = f"process {rank} (pid {note['pid']} on {note['host']})"
        return f"{where} {_state(note)}"


def _within(seconds: float, ask: Callable[[], list[str]]) -> list[str]:
    """What `ask` returns; nothing if it takes longer, as where process 0 with the notes stopped."""
    found: list[str] = []
    asker = threading.Thread(target=lambda: found.extend(ask()), daemon=True)
    asker.start()
    asker.join(seconds)
    return [] if asker.is_alive() else found


def _state(note: dict[str, Any]) -> str:
    """What the system says of a process, if it is on this machine."""
    if note["host"] != platform.node():
        return "does not answer"
    try:
        stat = Path(f"/proc/{note['pid']}/stat").read_text()
    except OSError:
        return "does not answer" if not Path("/proc/self").exists() else "is gone"
    letter = stat.rpartition(")")[2].split()[0]
    return {"T": "is stopped", "t": "is stopped", "Z": "is gone", "X": "is gone"}.get(
        letter, "does not answer"
    )


@contextmanager
def joined(*, timeout_s: float) -> Iterator[Peers | None]:
    """Join the processes that the environment announces, as torchrun and `--nproc` do.

    Args:
        timeout_s: Seconds that a collective waits.

    Yields:
        The processes; None if this one is alone or a caller has joined them already.

    Raises:
        LostPeerError: X08 if they cannot be joined.
        UsageError: X08 if the environment is incomplete.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield None
        return
    peers = _join(timeout_s)
    lost = False
    try:
        yield peers
    except LostPeerError:
        lost = True
        raise
    finally:
        # An orderly end may wait for a lost process for ever; the end of this one does not.
        if not lost:
            dist.destroy_process_group()


def _join(timeout_s: float) -> Peers:
    rank, size, address = _announced()
    timeout = timedelta(seconds=timeout_s)
    if torch.cuda.is_available():
        # What asks for "cuda" without a number means this process's.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        store = _store(timeout)
        dist.init_process_group(
            _backend(), store=PrefixStore("group", store), rank=rank, world_size=size,
            timeout=timeout,
        )  # fmt: skip
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as cause:
        said = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        message = f"cannot join {size} processes at {address}: {said}"
        fix = "start every process, with the address of the first; or let advdiff train --nproc"
        raise LostPeerError(message, code="X08", where=f"process {rank}", fix=fix) from cause
    peers = Peers(
        rank=rank, size=size, timeout=timeout_s, store=PrefixStore("notes", store),
        patient=patient,
    )  # fmt: skip
    peers.introduce()
    return peers


def _announced() -> tuple[int, int, str]:
    """Rank, number of processes and address of the meeting point, from the environment."""
    missing = [name for name in _VARIABLES if name not in os.environ]
    if missing:
        message = f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} missing"
        fix = "start with torchrun or advdiff train --nproc, or unset WORLD_SIZE"
        raise UsageError(message, code="X08", where="environment", fix=fix)
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), address


def _store(timeout: timedelta) -> Store:
    """The meeting point: at the launcher's socket, or as torchrun says."""
    listener = os.environ.get(LISTENER)
    if listener is None:
        store: Store = next(rendezvous("env://", timeout=timeout))[0]
        return store
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    first = os.environ["RANK"] == "0"
    return TCPStore(
        address, port, int(os.environ["WORLD_SIZE"]), first, timeout, wait_for_workers=False,
        master_listen_fd=int(listener) if first else None,
    )  # fmt: skip


def _backend() -> str:
    """NCCL between GPUs; gloo on CPUs, and where processes share a GPU, which NCCL refuses."""
    if not torch.cuda.is_available():
        return "gloo"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "cpu:gloo,cuda:nccl" if local <= torch.cuda.device_count() else "gloo"
