"""What a training process does with memory that a step frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy
from advdiff_core.engine.memory import keep_freed_memory
assert {call}
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [numpy.ones(2**20, numpy.float32) for _ in range(32)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
step()
print(step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_blocks_are_used_again_instead_of_paged_in_anew():
    """What one step frees costs the next no page faults; by default each step pays for all."""

    def faults(call: str) -> int:
        words = [sys.executable, "-c", FAULTS.format(call=call)]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < 100 < 10_000 < faults("True")


def test_elsewhere_nothing_is_done(monkeypatch):
    """Where the C library is another one it says that it did nothing."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    from advdiff_core.engine.memory import keep_freed_memory

    assert not keep_freed_memory()
