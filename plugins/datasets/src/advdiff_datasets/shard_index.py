"""Which shards a folder holds: its `index.json`, or its files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from attrs import frozen

from advdiff_core.errors import DataError

__all__ = ["FORMAT", "INDEX", "Index", "Listed", "read_index"]

INDEX = "index.json"
FORMAT = "advdiff-shards"
VERSION = 1
#: Larger indices are no indices: a shard takes about 150 bytes.
MAX_BYTES = 64 * 2**20


@frozen(kw_only=True)
class Listed:
    """A shard as the index lists it.

    Attributes:
        path: The file.
        count: Images it has; None where nobody says.
        size: Bytes it has; None where nobody says.
        sha256: Its hash in hex; empty where nobody says.
    """

    path: Path
    count: int | None = None
    size: int | None = None
    sha256: str = ""

    def check(self, count: int, size: int) -> None:
        """Compare the file with the index.

        Raises:
            DataError: D02 if they differ.
        """
        for what, found, wanted in (("bytes", size, self.size), ("images", count, self.count)):
            if wanted is not None and found != wanted:
                message = f"has {found:,} {what}, {INDEX} says {wanted:,}"
                raise self._damaged(message)

    def verify(self) -> None:
        """Compare the content of the file with its hash.

        Raises:
            DataError: D02 if they differ or the index knows no hash; D01 if it cannot be read.
        """
        if not self.sha256:
            message = f"verify: no {INDEX} says what the shard's hash is"
            raise DataError(message, code="D02", where=str(self.path), fix="leave verify out")
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as cause:
            message = f"cannot be read: {cause.strerror}"
            raise DataError(message, code="D01", where=str(self.path)) from cause
        if found != self.sha256:
            raise self._damaged(f"has the hash {found[:12]}..., {INDEX} says {self.sha256[:12]}...")

    def _damaged(self, message: str) -> DataError:
        fix = "fetch or make it again"
        return DataError(message, code="D02", where=str(self.path), fix=fix)


@frozen(kw_only=True)
class Index:
    """The shards in order, and the number of classes; 0 where nobody says."""

    shards: tuple[Listed, ...]
    classes: int = 0


def read_index(path: Path) -> Index:
    """The shards at a path: a folder with or without an index, or one file.

    Raises:
        DataError: D01 if there is nothing; D02 if the index is damaged.
    """
    if path.is_file():
        return Index(shards=(Listed(path=path),))
    if not path.is_dir():
        fix = "name a folder of .npz shards"
        raise DataError("there is no such folder", code="D01", where=str(path), fix=fix)
    if (path / INDEX).is_file():
        return _read(path / INDEX)
    found = tuple(Listed(path=file) for file in sorted(path.glob("*.npz")))
    if not found:
        fix = "name a folder of .npz shards"
        raise DataError(f"holds no .npz file and no {INDEX}", code="D01", where=str(path), fix=fix)
    return Index(shards=found)


def _read(path: Path) -> Index:
    try:
        return _checked(json.loads(_text(path)), path.parent)
    # What is in the file is not of the kinds that are read from it.
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        message = f"is no index of shards: {type(cause).__name__}: {cause}"
        fix = "take the file away to use every .npz file of the folder"
        raise DataError(message, code="D02", where=str(path), fix=fix) from cause


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        message = f"it is longer than {MAX_BYTES:,} bytes"
        raise ValueError(message)
    return path.read_text(encoding="utf-8")


def _checked(raw: Any, folder: Path) -> Index:
    if raw["format"] != FORMAT or raw["version"] != VERSION:
        message = f"found {raw['format']!r} {raw['version']!r}, wanted {FORMAT!r} {VERSION}"
        raise ValueError(message)
    shards = tuple(_listed(one, folder) for one in raw["shards"])
    return Index(shards=shards, classes=_whole(raw["classes"]))


def _listed(raw: Any, folder: Path) -> Listed:
    name, sha256 = raw["file"], raw["sha256"]
    if not isinstance(name, str) or Path(name).name != name or not isinstance(sha256, str):
        message = f"{name!r} is not the name of a file in the folder"
        raise ValueError(message)
    return Listed(
        path=folder / name, count=_whole(raw["count"]), size=_whole(raw["bytes"]), sha256=sha256
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        message = f"found {value!r}, wanted a whole number"
        raise ValueError(message)
    return value
