"""Reading a file that may be damaged, replaced meanwhile, or no file at all. Free of torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from advdiff_core.errors import DataError

__all__ = ["open_regular", "read_bytes"]


@contextmanager
def open_regular(path: Path, *, limit: int, code: str = "S02") -> Iterator[BufferedReader]:
    """Open a regular file of at most `limit` bytes for reading, never a device, pipe or directory.

    Raises:
        DataError: With `code`: missing, unreadable (here or in the block), not a regular file, too
            long.
    """
    try:
        # O_NONBLOCK so that opening a pipe returns at once.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DataError("is not a regular file", code=code, where=str(path))
            if found.st_size > limit:
                message = f"has {found.st_size:,} bytes, more than the {limit:,} expected"
                raise DataError(message, code=code, where=str(path))
            yield file
    except FileNotFoundError as error:
        raise DataError("the file is missing", code=code, where=str(path)) from error
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise DataError(message, code=code, where=str(path)) from error


def read_bytes(path: Path, *, limit: int, code: str = "S02") -> bytes:
    """Read a regular file once and whole, into memory of its own, not a mapping of the file.

    Args:
        path: File to read.
        limit: Most bytes accepted.
        code: Fault id of the error.

    Raises:
        DataError: As `open_regular`.
    """
    with open_regular(path, limit=limit, code=code) as file:
        size = min(limit, os.fstat(file.fileno()).st_size)
        # One byte more than there should be, so that a file that grows meanwhile is noticed.
        data = file.read(size + 1)
    if len(data) > size:
        raise DataError("grew while it was read", code=code, where=str(path))
    return data
