"""Sides of a comparison that take turns, step by step, and what one holds in memory on its own.

In one process on one thread a ratio is the median over the rounds, in which drift and neighbours
hit all sides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.types import Cost
from tests.bench.duel import clocked

__all__ = [
    "costs_of", "in_turns", "memory_of", "peak_growth", "pictures", "ratios", "resident",
    "trainer_of",
]  # fmt: skip


def trainer_of(tables: dict[str, Any]) -> Trainer:
    """A recipe's trainer, past the contract checks of the first steps."""
    made = assemble(recipe_from_dict(tables), device="cpu")
    found = Trainer(made, world=World(), ticks=None, stop=StopFlag())  # type: ignore[arg-type]
    found.index = 2
    return found


def costs_of(side: Trainer) -> dict[str, Cost]:
    """Passes of its next step, by role."""
    for role in side.scene.roles.values():
        role.cost = Cost()
    side.train_step()
    return {name: role.cost for name, role in side.scene.roles.items()}


def in_turns(
    sides: Mapping[str, Trainer], *, rounds: int, warm_up: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and processor seconds of the steps of each side."""
    steps = {side: one.train_step for side, one in sides.items()}
    return clocked(steps, rounds=rounds, warm_up=warm_up)


def ratios(times: Mapping[str, list[float]], side: str, base: str) -> list[float]:
    """One side over another, round by round, sorted."""
    return sorted(a / b for a, b in zip(times[side], times[base], strict=True))


def pictures(folder: Path) -> Path:
    """A file of random 32x32 colour images."""
    images = folder / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    np.savez(images, images=pixels)
    return images


def memory_of(suite: str, *arguments: str) -> int:
    """What the suite prints when it is run with these arguments, in a process of its own."""
    command = [sys.executable, "-m", f"tests.bench.{suite}", *arguments]
    # Freed blocks go back at once: otherwise the resident set tells of the allocator's habits.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_growth(side: Trainer, steps: int) -> int:
    """Peak resident bytes of this process over a few steps, above those before them."""
    before = resident("VmRSS")
    for _ in range(steps):
        side.train_step()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    """Resident bytes of this process, now or at most; getrusage begins with its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
