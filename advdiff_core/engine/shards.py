"""Folders of image shards: uncompressed `.npz` files and the index that lists them.

The format that the dataset `npz-shards` reads. Equal arrays give equal bytes: numpy dates every
member of an archive 1980.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import FileSystem, write_atomic
from advdiff_core.errors import DataError

__all__ = ["INDEX", "read_shard", "shard_name", "write_index", "write_shard"]

INDEX = "index.json"
#: Writes here are failpoints of their own, for tests of what a kill leaves behind.
DISK = FileSystem("shards")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06}.npz"


def write_shard(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write a shard whole or not at all; returns its entry in the index.

    Raises:
        StorageError: S03 or S04.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    write_atomic(path, data, fs=DISK)
    return _entry(path, data, len(arrays["image"]))


def read_shard(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a shard and its entry in the index, checksums compared.

    Raises:
        DataError: S02 if it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, _entry(path, data, len(arrays["image"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as cause:
        message = f"is no whole shard: {type(cause).__name__}: {cause}"
        raise DataError(message, code="S02", where=str(path)) from cause


def write_index(
    folder: Path, entries: Sequence[Mapping[str, Any]], *, classes: int, made: Mapping[str, Any]
) -> None:
    """Write the index of a folder, after all of its shards.

    Args:
        folder: The folder.
        entries: What `write_shard` returned, in order.
        classes: Number of classes; 0 without labels.
        made: How the images were made.

    Raises:
        StorageError: S03 or S04.
    """
    index = {
        "format": "advdiff-shards", "version": 1, "classes": classes, "shards": list(entries),
        "count": sum(entry["count"] for entry in entries), "made": dict(made),
    }  # fmt: skip
    write_atomic(folder / INDEX, strict_json.dumps(index), fs=DISK)


def _entry(path: Path, data: bytes, count: int) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    return {"file": path.name, "count": count, "bytes": len(data), "sha256": digest}
