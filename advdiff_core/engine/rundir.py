"""The folder of a run: `runs/NNNNN-name/`, never shared, never left by a write. Free of torch."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from advdiff_core.engine.fsio import (
    DISK,
    FileSystem,
    make_dirs,
    reported,
    sweep_temps,
    write_atomic,
)
from advdiff_core.engine.lock import Lock
from advdiff_core.engine.metrics_log import MetricsLog
from advdiff_core.errors import DataError, StorageError, UsageError

__all__ = ["RunDir", "new_run", "new_run_at", "open_run", "save_capsule"]

_NAME = re.compile(r"\w[\w .+=-]{0,79}")
_NUMBERED = re.compile(r"([0-9]{5,9})-.*")
_LOCK_FILE = "recipe.lock.toml"
_TRIES = 100


class RunDir:
    """A run folder and the places in it.

    Args:
        path: The folder, which exists; a symbolic link to one is fine.
        fs: The disk.
    """

    def __init__(self, path: Path, *, fs: FileSystem = DISK) -> None:
        self.path = path
        self._fs = fs
        self._log: MetricsLog | None = None

    @property
    def recipe_lock(self) -> Path:
        """The resolved recipe, `recipe.lock.toml`."""
        return self.resolve(_LOCK_FILE)

    @property
    def metrics(self) -> Path:
        """The log, `metrics.jsonl`."""
        return self.resolve("metrics.jsonl")

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.resolve("checkpoints")

    @property
    def images(self) -> Path:
        """The folder of pictures."""
        return self.resolve("images")

    @property
    def report(self) -> Path:
        """The report, `report.html`."""
        return self.resolve("report.html")

    @property
    def crash_log(self) -> Path:
        """Where the traceback of an error goes."""
        return self.resolve("crash.log")

    def resolve(self, name: str) -> Path:
        """The path of `name` in the folder, links followed to make sure it stays inside.

        Args:
            name: Relative path with forward slashes.

        Raises:
            UsageError: Q04 if it is absolute, has `..` or control characters, or leads out of the
                folder through a link.
        """
        parts = PurePosixPath(name).parts
        sane = name.isprintable() and parts and not name.startswith("/") and ".." not in parts
        target = self.path / name
        if not sane or not target.resolve().is_relative_to(self.path.resolve()):
            message = f"{name!r} is not inside the run folder"
            raise UsageError(message, code="Q04", where=str(self.path), fix="choose a plain name")
        return target

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a whole file in the folder, atomically and durably; text is UTF-8.

        Raises:
            UsageError: Q04.
            StorageError: S03 or S04; an older file of that name is then untouched.
        """
        path = self.resolve(name)
        make_dirs(path.parent, fs=self._fs)
        write_atomic(path, data.encode() if isinstance(data, str) else data, fs=self._fs)
        return path

    def lock(self) -> Lock:
        """Take the folder for this process, and remove what dead ones left half-written in it.

        Raises:
            StorageError: S08 if another process is running in it.
        """
        held = Lock(self.resolve(".lock"))
        sweep_temps(self.path, fs=self._fs)
        return held

    def open_metrics(self, mark: Mapping[str, Any] | None = None) -> MetricsLog:
        """Open the log, cut back to the `mark` of a checkpoint when resuming.

        Raises:
            DataError: K08 if the log is not the one the checkpoint was saved with.
        """
        if self._log is not None:
            self._log.close()
        self._log = MetricsLog(self.metrics, mark, fs=self._fs)
        return self._log

    def record(self, row: Mapping[str, Any]) -> None:
        """Append one line to the log, opening it if needed.

        Raises:
            StorageError: S03 or S04.
        """
        (self._log or self.open_metrics()).record(row)

    def metrics_mark(self) -> dict[str, Any]:
        """Sync the log and return its mark, to be stored in a checkpoint.

        Raises:
            StorageError: S03 or S04.
        """
        return (self._log or self.open_metrics()).mark()


def new_run(root: Path | str = "runs", name: str = "run", *, fs: FileSystem = DISK) -> RunDir:
    """Make `root/NNNNN-name/` with the next free number; two starters never get the same.

    Args:
        root: Folder of runs; made if missing.
        name: Letters, digits and ` _.+=-`, at most 80.
        fs: The disk.

    Raises:
        UsageError: Q04 for another name.
        StorageError: S03 or S04.
    """
    if not _NAME.fullmatch(name):
        message = f"{name!r} cannot name a run"
        fix = "use at most 80 letters, digits and _ . + = -, beginning with a letter or digit"
        raise UsageError(message, code="Q04", where="run.name", fix=fix)
    root = Path(root)
    make_dirs(root, fs=fs)
    with _numbering(root), reported(root, fs=fs):
        path = _make_next(root, name, fs)
        fs.sync_dir(root)
    return RunDir(path, fs=fs)


def new_run_at(path: Path | str, *, fs: FileSystem = DISK) -> RunDir:
    """Make a run folder at just this place; an empty folder may be there already.

    Raises:
        StorageError: S10 if something is there, S03 or S04.
    """
    path = Path(path)
    make_dirs(path, fs=fs)
    with reported(path, fs=fs):
        occupied = next(path.iterdir(), None)
    if occupied is not None:
        raise StorageError(
            f"the folder is not empty: it holds {occupied.name!r}",
            code="S10",
            where=str(path),
            fix="choose a new folder, or go on with that run by --resume",
        )
    return RunDir(path, fs=fs)


def open_run(path: Path | str) -> RunDir:
    """An existing run folder.

    Raises:
        DataError: S02 if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError("there is no run folder here", code="S02", where=str(path))
    run = RunDir(path)
    if not run.recipe_lock.is_file():
        raise DataError(
            f"is not a run folder: it has no {_LOCK_FILE}",
            code="S02",
            where=str(path),
            fix="give the folder that `advdiff train` named",
        )
    return run


def save_capsule(
    run: RunDir, name: str, tensors: Mapping[str, Any], info: Mapping[str, Any]
) -> Path:
    """Save what is needed to look into a stopped run, under `capsule/<name>/`.

    Args:
        run: The run.
        name: Plain name; a number is added if it is taken.
        tensors: Nested state with tensors, finite or not.
        info: State without tensors.

    Returns:
        The folder, which holds `tensors.safetensors` and `info.json`.

    Raises:
        DataError: S12 for a value that cannot be stored.
        StorageError: S03 or S04.
    """
    from advdiff_core.engine import capsule  # here, so that this module stays free of torch.

    return capsule.write(run, name, dict(tensors), dict(info))


@contextmanager
def _numbering(root: Path) -> Iterator[None]:
    """Let one process number at a time; where the disk has no locks, mkdir alone decides."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_next(root: Path, name: str, fs: FileSystem) -> Path:
    """Make the folder with the next number; again if a starter that could not lock was faster."""
    for _ in range(_TRIES):
        path = root / f"{_next_number(root):05d}-{name}"
        with suppress(FileExistsError):
            fs.make_dir(path)
            return path
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _next_number(root: Path) -> int:
    numbers = (_NUMBERED.fullmatch(path.name) for path in root.iterdir())
    return max((int(found[1]) for found in numbers if found), default=-1) + 1
