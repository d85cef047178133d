"""One process per run folder, by a lock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from advdiff_core.engine.fsio import reported
from advdiff_core.errors import StorageError

__all__ = ["Lock"]


class Lock:
    """Exclusive lock on a file, held until `release` or the death of the process.

    The file says who holds it and stays after release: removing it would let two processes lock two
    files of one name. A stale lock cannot exist, since only the kernel's lock (flock) counts.

    Args:
        path: The lock file; made if missing.

    Raises:
        StorageError: S08 if another process holds it, naming process, host and time; S04 if it
            cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reported(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o666)
            try:
                self._take()
            except BaseException:
                os.close(self._descriptor)
                raise
        _held.add(self)

    def _take(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(self.path, os.pread(self._descriptor, 4096, 0)) from None
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": platform.node(), "pid": os.getpid(), "since": since}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)

    def release(self) -> None:
        """Give the lock back; harmless the second time."""
        if self in _held:
            _held.discard(self)
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


_held: set[Lock] = set()


def _forget_in_child() -> None:
    # A forked data worker that outlives a killed trainer must not keep its lock.
    for lock in list(_held):
        os.close(lock._descriptor)
        _held.discard(lock)


os.register_at_fork(after_in_child=_forget_in_child)


def _busy(path: Path, content: bytes) -> StorageError:
    try:
        holder = json.loads(content)
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, LookupError, TypeError):
        who = "another process"
    return StorageError(
        f"the folder is in use by {who}",
        code="S08",
        where=str(path.parent),
        fix="wait for it to end, stop it, or choose another folder",
    )
