"""Signals only set a flag; the loop honours it at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["StopFlag", "stop_on_signals"]

WATCHED = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
)


class StopFlag:
    """Which signal asked the run to stop; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        del frame
        if self.signal is not None:
            # 128 + n, as shells report it. Checkpoints are atomic: nothing is half written.
            os._exit(128 + number)
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Collect SIGINT, SIGTERM, SIGHUP and SIGUSR1 in a flag while the body runs.

    Outside the main thread no handler can be set; the flag then stays false.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before: dict[int, Any] = {number: signal.signal(number, flag) for number in WATCHED}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
