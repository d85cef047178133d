"""Planned failures, for tests of what survives them.

`ADVDIFF_FAULT=save.rename:3:kill` kills the process just before the third rename of a save, and
`train.step@1:3:kill` process 1 of several alone before its third step. Several faults are joined by
commas. Actions: `kill` (SIGKILL), `signal:SIGTERM`, `raise:EIO` (any errno
name). Without the variable a failpoint does nothing.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from functools import cache

from attrs import frozen

from advdiff_core.errors import UsageError

__all__ = ["VARIABLE", "failpoint"]

VARIABLE = "ADVDIFF_FAULT"

_calls: Counter[str] = Counter()


@frozen
class _Fault:
    """Do `action` at call number `count` of `point`."""

    point: str
    count: int
    action: str
    argument: int

    def strike(self) -> None:
        if self.action == "raise":
            raise OSError(self.argument, os.strerror(self.argument))
        os.kill(os.getpid(), self.argument)


def failpoint(point: str) -> None:
    """Fail here if the environment planned it; the variable is read once, at the first call.

    Args:
        point: Name of the place, for example "save.rename" or "loop.step".

    Raises:
        OSError: As planned by `raise:<errno name>`.
        UsageError: The variable is malformed.
    """
    faults = _planned()
    if not faults:
        return
    _calls[point] += 1
    here = f"{point}@{os.environ.get('RANK', '0')}"
    for fault in faults:
        if fault.point in {point, here} and fault.count == _calls[point]:
            fault.strike()


@cache
def _planned() -> tuple[_Fault, ...]:
    text = os.environ.get(VARIABLE, "")
    return tuple(_parse(part) for part in text.split(",") if part)


def _parse(text: str) -> _Fault:
    point, count, action = [*text.split(":", 2), "", ""][:3]
    verb, _, name = action.partition(":")
    argument = _argument(verb, name)
    if argument is None or not (count.isascii() and count.isdigit() and int(count)):
        raise UsageError(
            f"{text!r} is not a planned fault",
            where=VARIABLE,
            fix="write point:N:kill, point:N:signal:SIGTERM or point:N:raise:EIO",
        )
    return _Fault(point, int(count), verb, argument)


def _argument(verb: str, name: str) -> int | None:
    if verb == "kill" and not name:
        return signal.SIGKILL
    if verb == "signal" and name in signal.Signals.__members__:
        return signal.Signals[name]
    if verb == "raise" and name in errno.errorcode.values():
        return int(getattr(errno, name))
    return None
