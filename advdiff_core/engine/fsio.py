"""Every durable write of a run goes through here: written, synced, renamed, or reported as failed.

`FileSystem` is the seam: tests replace it to fail at the N-th operation, or to lose what was never
synced. Free of torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from attrs import frozen

from advdiff_core.engine.failpoints import failpoint
from advdiff_core.engine.owner import TAG_PATTERN, is_dead, unique_tag
from advdiff_core.errors import StorageError

__all__ = [
    "DISK",
    "Chunk",
    "FileSystem",
    "Written",
    "check_free",
    "make_dirs",
    "reported",
    "sweep_temps",
    "write_atomic",
]

Chunk: TypeAlias = bytes | memoryview

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FIXES = {
    errno.EACCES: "choose a folder you may write to",
    errno.EPERM: "choose a folder you may write to",
    errno.EROFS: "choose a folder on a writable disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of the machine",
    errno.EIO: "check the disk; the last complete checkpoint is untouched",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_SLACK = 64 * 1024  # directory entries, block rounding and small files beside the big ones.
_TEMP = re.compile(rf"\.tmp-{TAG_PATTERN}")


@frozen
class Written:
    """What was written: size in bytes and SHA-256 in hex."""

    size: int
    sha256: str


class FileSystem:
    """The operations that change a disk, each preceded by `before(operation, path)`.

    Operations: mkdir, open, write, fsync, append, truncate, sync_dir, rename, unlink, rmdir, free.

    Args:
        area: First part of the failpoint names, for example "save" for `save.rename`.
    """

    def __init__(self, area: str = "disk") -> None:
        self.area = area

    def before(self, operation: str, path: Path) -> None:
        """Called before every operation; may raise OSError in its place."""
        failpoint(f"{self.area}.{operation}")

    def make_dir(self, path: Path) -> None:
        """Create one directory, which must not exist."""
        self.before("mkdir", path)
        path.mkdir()

    def write_file(self, path: Path, chunks: Iterable[Chunk]) -> Written:
        """Create a file that must not exist, write `chunks`, wait until they are on the disk."""
        self.before("open", path)
        # Mode 0666 less the umask; O_EXCL and O_NOFOLLOW so that a planted link is never written
        # through.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        digest, size = hashlib.sha256(), 0
        try:
            for chunk in chunks:
                self._write(descriptor, path, chunk)
                digest.update(chunk)
                size += len(chunk)
            self._sync(descriptor, path)
        finally:
            os.close(descriptor)
        return Written(size, digest.hexdigest())

    def append(self, descriptor: int, path: Path, data: bytes) -> None:
        """Append to an open file; not synced."""
        self.before("append", path)
        _write_all(descriptor, data)

    def sync(self, descriptor: int, path: Path) -> None:
        """Wait until an open file is on the disk."""
        self._sync(descriptor, path)

    def truncate(self, descriptor: int, path: Path, size: int) -> None:
        """Cut an open file to `size` bytes."""
        self.before("truncate", path)
        os.ftruncate(descriptor, size)

    def sync_dir(self, path: Path) -> None:
        """Wait until the names in a directory are on the disk."""
        self.before("sync_dir", path)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some network mounts cannot sync a directory and say so by EINVAL; a failing disk says
            # EIO.
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
                raise
        finally:
            os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory another name, in one step."""
        self.before("rename", target)
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove one file or link."""
        self.before("unlink", path)
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove one empty directory."""
        self.before("rmdir", path)
        path.rmdir()

    def free_bytes(self, path: Path) -> int:
        """Bytes a user may still write on the disk that holds `path`."""
        self.before("free", path)
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def _write(self, descriptor: int, path: Path, chunk: Chunk) -> None:
        self.before("write", path)
        _write_all(descriptor, chunk)

    def _sync(self, descriptor: int, path: Path) -> None:
        self.before("fsync", path)
        os.fsync(descriptor)


#: The real disk.
DISK = FileSystem()


def _write_all(descriptor: int, data: Chunk) -> None:
    rest = memoryview(data)
    while len(rest):
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def reported(where: Path, *, need: int = 0, fs: FileSystem = DISK) -> Iterator[None]:
    """Turn every OSError of the block into a `StorageError` about `where`.

    Args:
        where: File or folder the block writes.
        need: Bytes the whole write takes, for the message of a full disk.
        fs: Asked for the free space.

    Raises:
        StorageError: S03 for a full disk or quota, S04 for every other failure.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(where, need, _free_or_zero(where, fs), error.errno) from error
        name = errno.errorcode.get(error.errno or 0, "?")
        raise StorageError(
            f"cannot write: {error.strerror or error} ({name})",
            code="S04",
            where=str(where),
            fix=_FIXES.get(error.errno or 0, "nothing was saved; try again"),
        ) from error


def check_free(folder: Path, need: int, *, fs: FileSystem = DISK) -> None:
    """Refuse a write of `need` bytes that the disk of `folder` has no room for.

    A tenth and 64 KiB are added, since other files grow meanwhile.

    Raises:
        StorageError: S03, with bytes needed and free.
    """
    wanted = need + need // 10 + _SLACK
    with reported(folder, need=need, fs=fs):
        free = fs.free_bytes(folder)
    if free < wanted:
        raise _full(folder, wanted, free, None)


def _full(where: Path, need: int, free: int, number: int | None) -> StorageError:
    cause = "the quota is used up" if number == errno.EDQUOT else "the disk is full"
    return StorageError(
        f"{cause}: {need:,} bytes are needed and {free:,} are free",
        code="S03",
        where=str(where),
        fix="free some space or choose a folder on another disk",
    )


def _free_or_zero(where: Path, fs: FileSystem) -> int:
    with suppress(OSError):
        return fs.free_bytes(where if where.is_dir() else where.parent)
    return 0


def make_dirs(path: Path, *, fs: FileSystem = DISK) -> None:
    """Create a directory and its missing parents durably; fine if it exists.

    Raises:
        StorageError: S04 or S03.
    """
    with reported(path, fs=fs):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        for folder in reversed(missing):
            with suppress(FileExistsError):  # another process was faster.
                fs.make_dir(folder)
            fs.sync_dir(folder.parent)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def write_atomic(path: Path, data: bytes, *, fs: FileSystem = DISK) -> Written:
    """Write a whole file so that it is either the old one or the new one, whatever happens.

    A symbolic link at `path` is replaced, not followed.

    Raises:
        StorageError: S03 or S04. Nothing is left behind, and the file is the old one, or the new
            one if just the last step failed, which makes the new name durable.
    """
    temp = path.with_name(f".tmp-{unique_tag()}")
    with reported(path, need=len(data), fs=fs):
        try:
            written = fs.write_file(temp, [data])
            fs.rename(temp, path)
        except BaseException:
            with suppress(OSError):
                fs.unlink(temp)
            raise
        fs.sync_dir(path.parent)
    return written


def sweep_temps(folder: Path, *, fs: FileSystem = DISK) -> None:
    """Remove what `write_atomic` calls of dead processes left in `folder`, as far as possible."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if _TEMP.fullmatch(path.name) and is_dead(path.name.removeprefix(".tmp-")):
                with suppress(OSError):
                    fs.unlink(path)
