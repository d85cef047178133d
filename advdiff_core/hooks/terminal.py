"""One line to a person on stderr, whatever has become of stderr."""

from __future__ import annotations

import sys
from contextlib import suppress

__all__ = ["say"]


def say(line: str) -> None:
    """Write a line on stderr; a closed or full stderr never stops a run."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
