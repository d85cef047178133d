"""A process that `--nproc` has started: where it reports to, and whose end it shares. No torch."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from advdiff_core.errors import LostPeerError

__all__ = [
    "LISTENER", "PARENT", "REPORTS", "deliver", "follow_parent", "is_launched", "note_folder",
    "read_folder", "read_report", "speaks",
]  # fmt: skip

#: Variables of a process that was launched: number of the socket that the meeting point listens at
#: (process 0 alone has it), process id of the launcher, folder of the reports.
LISTENER = "ADVDIFF_LISTENER"
PARENT = "ADVDIFF_LAUNCHER"
REPORTS = "ADVDIFF_REPORTS"
_FOLDER = "folder"
#: Option of prctl(2): the signal that a process gets at the end of its parent.
_PR_SET_PDEATHSIG = 1


def is_launched() -> bool:
    """Whether a launcher of ours waits for this process."""
    return REPORTS in os.environ


def speaks() -> bool:
    """Whether this process prints results: alone, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def follow_parent() -> None:
    """Stop, as by SIGTERM, when the launcher ends: a run without one would run on unseen."""
    if not (is_launched() and sys.platform == "linux"):
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(os.environ.get(PARENT, "0")):
        os.kill(os.getpid(), signal.SIGTERM)


def deliver(lines: Sequence[str], code: int, error: BaseException) -> bool:
    """Hand the launcher what there is to say of an error, in place of saying it.

    Args:
        lines: For stderr.
        code: Exit code.
        error: What happened.

    Returns:
        Whether somebody will say it.
    """
    if not is_launched():
        return False
    lost = isinstance(error, LostPeerError)
    note = {"lines": list(lines), "code": code, "lost": lost, "time": time.time()}
    with suppress(OSError):
        _write(os.environ.get("RANK", "0"), json.dumps(note))
        return True
    return False


def note_folder(folder: Path) -> None:
    """Tell the launcher the run folder, so that it can say how to go on."""
    if is_launched():
        with suppress(OSError):
            _write(_FOLDER, str(folder.resolve()))


def _write(name: str, text: str) -> None:
    target = Path(os.environ[REPORTS]) / name
    temp = target.with_suffix(".tmp")
    temp.write_text(text, encoding="utf-8", errors="backslashreplace")
    temp.replace(target)


def read_report(reports: Path, rank: int) -> dict[str, Any] | None:
    """What a process delivered; None if nothing."""
    try:
        note: dict[str, Any] = json.loads((reports / str(rank)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note


def read_folder(reports: Path) -> Path | None:
    """The run folder that was noted; None if it was not made yet."""
    try:
        return Path((reports / _FOLDER).read_text(encoding="utf-8"))
    except OSError:
        return None
