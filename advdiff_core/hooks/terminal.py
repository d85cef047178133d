"""One line to a person on stderr, whatever has become of stderr or of the error."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from advdiff_core.errors import AdvdiffError, escape

__all__ = ["cause_of", "say", "shown"]


def say(line: str) -> None:
    """Write a line on stderr; a closed or full stderr never stops a run."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def cause_of(error: BaseException) -> str:
    """`Type: text` of an exception, escaped; the text alone of our own, which name themselves.

    Never raises, though the exception of a plugin may when it is turned into text.
    """
    kind = "" if isinstance(error, AdvdiffError) else type(error).__name__
    try:
        text = escape(error)
    except Exception:
        text = "(its message cannot be shown)"
    return ": ".join(part for part in (kind, text) if part)


def shown(path: Path | str) -> str:
    """A path to be read by a person: whole, control characters escaped."""
    return escape(path, limit=4096)
