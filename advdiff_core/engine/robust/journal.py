"""The journal of an evaluation: a line per bucket, synced, so that a kill loses one bucket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import FileSystem, make_dirs, reported, write_atomic
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.errors import DataError, UsageError

__all__ = ["CONFIG", "JOURNAL", "Followed", "Journal", "Record", "claim"]

CONFIG = "config.json"
JOURNAL = "journal.jsonl"
MAX_BYTES = 2**32
_FS = FileSystem("robust")


def claim(folder: Path, config: Mapping[str, Any]) -> None:
    """Write down what is evaluated, or find that the folder holds this very evaluation.

    Raises:
        UsageError: E24 if it holds another one, naming the first difference.
    """
    path, text = folder / CONFIG, strict_json.dumps(config)
    if not path.exists():
        make_dirs(folder)
        write_atomic(path, text, fs=_FS)
        return
    found = strict_json.loads(read_bytes(path, limit=2**24), where=str(path))
    wanted = strict_json.loads(text, where=str(path))
    key, old, new = _difference(found, wanted)
    if key:
        message = f"holds another evaluation: {key} was {old!r} and is {new!r}"
        fix = "choose another --name, or repeat the options of the first call"
        raise UsageError(message, code="E24", where=str(folder), fix=fix)


def _difference(old: Any, new: Any, at: str = "") -> tuple[str, Any, Any]:
    """Dotted key of the first difference and both values; "" if there is none."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, old.get(key), new.get(key)) for key in sorted({*old, *new})]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(place), a, b) for place, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return (at or "config", old, new) if old != new else ("", None, None)
    inner = (_difference(a, b, f"{at}.{key}" if at else key) for key, a, b in pairs)
    return next((found for found in inner if found[0]), ("", None, None))


class Record(Protocol):
    """The lines of an evaluation so far.

    Attributes:
        path: The file.
        rows: The lines that are there, oldest first.
    """

    path: Path
    rows: list[dict[str, Any]]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line."""


@define(eq=False)
class Followed:
    """The journal as the other processes of an evaluation see it, of which the main one writes it.

    Attributes:
        path: The file.
        rows: The lines that are there, oldest first.
    """

    path: Path
    rows: list[dict[str, Any]]

    def append(self, row: Mapping[str, Any]) -> None:
        """Note a line that the main process writes."""
        self.rows.append(dict(row))


class Journal:
    """Lines of JSON, each whole and on the disk before the next bucket begins.

    Args:
        folder: Folder of the evaluation.

    Attributes:
        rows: The lines that are there, oldest first.

    Raises:
        DataError: S15 if a line in the middle is damaged. A torn last line is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        data = read_bytes(self.path, limit=MAX_BYTES) if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.rows: list[dict[str, Any]] = [
            self._row(line, number) for number, line in enumerate(whole.splitlines(), 1)
        ]
        with reported(self.path, fs=_FS):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(self.path, flags, 0o666)
            if len(whole) < len(data):
                _FS.truncate(self._descriptor, self.path, len(whole))
            _FS.sync_dir(folder)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        where = f"{self.path}:{number}"
        row = strict_json.loads(line, where=where)
        if not isinstance(row, dict) or not isinstance(row.get("ids"), list):
            fix = "remove the folder and evaluate again"
            raise DataError("is no line of a journal", code="S15", where=where, fix=fix)
        return row

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            StorageError: S03 or S04.
        """
        with reported(self.path, fs=_FS):
            _FS.append(self._descriptor, self.path, strict_json.dumps(row))
            _FS.sync(self._descriptor, self.path)
        self.rows.append(dict(row))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
