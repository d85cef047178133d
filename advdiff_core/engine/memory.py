"""How this process deals with memory that a step frees."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

#: Parameters of mallopt(3), and the largest value that glibc takes for the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_ALL, _LARGEST_MAPPED = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; say whether that was possible.

    By default it gives large blocks back to the kernel and asks for them anew in each step, and
    pays for every page again; steps with several forwards pay most. It changes the whole process
    and cannot be taken back, so the command that trains calls it and the library does not.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(_M_TRIM_THRESHOLD, _KEEP_ALL), mallopt(_M_MMAP_THRESHOLD, _LARGEST_MAPPED)
    return all(kept)
