"""Who made a temporary file: a tag in its name that tells a dead maker from a live one.

A leftover may be deleted only when its maker is surely gone: same machine, and either an earlier
boot or a process that no longer runs. A process is known by its id and its start time, since ids
are reused; a machine by its name and process namespace, since containers on a shared disk see other
processes' ids.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from functools import cache
from pathlib import Path

__all__ = ["TAG_PATTERN", "is_dead", "unique_tag"]

#: Regular expression of a tag: machine, boot, process, start of the process, random.
TAG_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{8}-[0-9]+-[0-9]+-[0-9a-f]{8}"


def unique_tag() -> str:
    """A tag for one temporary name of this process; no two calls give the same."""
    pid = os.getpid()
    return f"{_machine()}-{_boot()}-{pid}-{_start(pid) or 0}-{secrets.token_hex(4)}"


def is_dead(tag: str) -> bool:
    """True if the process that made `tag` is surely gone; False when in doubt."""
    machine, boot, pid, start, _ = tag.split("-")
    if machine != _machine():
        return False
    return boot != _boot() or not _runs(int(pid), int(start))


def _runs(pid: int, start: int) -> bool:
    if Path("/proc/self/stat").exists():
        return _start(pid) == start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _start(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None if it does not run or is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@cache
def _machine() -> str:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return _short(f"{platform.node()} {namespace}")


@cache
def _boot() -> str:
    try:
        return _short(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    except OSError:
        return _short("")


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
