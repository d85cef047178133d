"""`metrics.jsonl`: one line of JSON per log tick, each there exactly once whatever was killed when.

A checkpoint stores a mark (length and hash of the file); resuming cuts the file back to it, since
the steps after it are run again. Free of torch.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import DISK, FileSystem, reported
from advdiff_core.engine.safe_read import open_regular, read_bytes
from advdiff_core.errors import DataError

__all__ = ["MetricsLog", "read_metrics"]

_MAX_BYTES = 2**34
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class MetricsLog:
    """Appends records to a file.

    Args:
        path: The file; made if missing.
        mark: What `mark()` gave when the checkpoint was saved: the file is cut back to it. None to
            go on at its end, less a last line that was torn by a kill.
        fs: The disk.

    Raises:
        DataError: K08 if the file does not begin with what the mark vouches for.
        StorageError: S03 or S04.
    """

    def __init__(
        self, path: Path, mark: Mapping[str, Any] | None = None, *, fs: FileSystem = DISK
    ) -> None:
        self.path = path
        self._fs = fs
        keep, self._hash = _vouched(path, mark) if mark else _whole_lines(path)
        with reported(path, fs=fs):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o666)
            if os.fstat(self._descriptor).st_size > keep:
                fs.truncate(self._descriptor, path, keep)
        self._size = keep

    def record(self, row: Mapping[str, Any]) -> None:
        """Append one line. Numbers that are not finite are written as text, for example "nan".

        Raises:
            StorageError: S03 or S04; the file then ends with whole lines as before.
        """
        line = strict_json.dumps({key: _plain(value) for key, value in row.items()})
        with reported(self.path, need=len(line), fs=self._fs):
            try:
                self._fs.append(self._descriptor, self.path, line)
            except OSError:
                os.ftruncate(self._descriptor, self._size)
                raise
        self._size += len(line)
        self._hash.update(line)

    def mark(self) -> dict[str, Any]:
        """Sync the file and say what it holds, for a checkpoint: `bytes` and `sha256`.

        Raises:
            StorageError: S03 or S04.
        """
        with reported(self.path, fs=self._fs):
            self._fs.sync(self._descriptor, self.path)
        return {"bytes": self._size, "sha256": self._hash.hexdigest()}

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a file; a torn last line is left out, "nan" and "inf" become floats.

    Raises:
        DataError: S02 if it cannot be read, S15 with the line number for a malformed line.
    """
    *lines, _torn = read_bytes(path, limit=_MAX_BYTES).split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = strict_json.loads(line, where=f"{path}:{number}")
        if not isinstance(row, dict):
            raise DataError("is not a record", code="S15", where=f"{path}:{number}")
        rows.append({key: _unplain(value) for key, value in row.items()})
    return rows


def _vouched(path: Path, mark: Mapping[str, Any]) -> tuple[int, Any]:
    """Length and hash of the part of the file a checkpoint vouches for."""
    size, digest = int(mark["bytes"]), hashlib.sha256()
    if size:
        with open_regular(path, limit=_MAX_BYTES, code="K08") as file:
            digest.update(file.read(size))
            whole = file.tell() == size
        if not whole or digest.hexdigest() != mark["sha256"]:
            raise DataError(
                f"its first {size:,} bytes are not those the checkpoint was saved with",
                code="K08",
                where=str(path),
                fix="put the original file back",
            )
    return size, digest


def _whole_lines(path: Path) -> tuple[int, Any]:
    """Length and hash of the file up to its last line end; 0 if there is none."""
    data = read_bytes(path, limit=_MAX_BYTES) if path.exists() else b""
    kept = data[: data.rfind(b"\n") + 1]
    return len(kept), hashlib.sha256(kept)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unplain(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
