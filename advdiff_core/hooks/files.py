"""Whole files or none, for listeners that write outside of a run's own folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from advdiff_core.errors import StorageError

__all__ = ["write_file"]


def write_file(path: Path, content: bytes | str) -> Path:
    """Write a file whole or not at all, its folder included; text is UTF-8.

    Raises:
        StorageError: If the disk refuses.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        return temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {len(data):,} bytes: {error.strerror or error}",
            code="S04",
            where=str(path),
            fix="free some space or choose another place",
        ) from error
