"""What a training process does with memory that a step frees."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from advdiff_core.engine import micro
from advdiff_core.engine.assemble import assemble
from advdiff_core.recipe import load_recipe

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


@pytest.mark.parametrize(
    ("log", "most"),
    [
        ([], 0),
        ([(1, 5), (2, 7), (1, -5), (3, 4)], 12),
        ([(1, 5), (1, 5), (1, -5), (2, 3), (1, -5), (2, -3), (4, 6)], 8),
        ([(1, 5), (1, -5), (1, 9), (2, 0)], 9),
        ([(8, 100), (1, 5), (8, -100), (2, 5)], 10),
    ],
)
def test_what_is_kept_at_once_is_counted_once_for_each_storage(log, most):
    """Addresses are used again, storages have several tensors, weights are left out."""
    assert micro._peak(log, {8}) == most


def test_graphs_of_an_attack_are_gone_before_the_loss_is_made():
    """Steps of a search need no more than one of them, and the count is the same each time."""
    dra = pytest.importorskip("advdiff_dra")
    recipe = Path(dra.__file__).with_name("recipes") / "digits-trades.toml"
    steps = [f"views.adv.perturb.attack.steps={count}" for count in (1, 1, 6)]
    found = [micro.saved_bytes_per_image(assemble(load_recipe(recipe, [one]))) for one in steps]
    assert found == found[:1] * 3
