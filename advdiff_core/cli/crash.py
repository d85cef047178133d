"""The traceback goes to a file, never to the terminal."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path

__all__ = ["write_crash_log"]


def write_crash_log(error: BaseException, folder: Path | None = None) -> Path | str:
    """Write the traceback of `error`; returns where, or a remark if nothing can be written.

    Args:
        error: What was raised.
        folder: The run folder, which gets `crash.log`; a new temporary file without one.
    """
    text = "".join(traceback.format_exception(error))
    for place in (folder, None):
        try:
            return _write(text, place)
        except OSError:
            continue
    return "(no place to write the traceback to)"


def _write(text: str, folder: Path | None) -> Path:
    if folder is not None:
        path = folder / "crash.log"
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return path
    number, name = tempfile.mkstemp(prefix="advdiff-crash-", suffix=".log")
    with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)
