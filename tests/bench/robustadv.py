"""Robust_adv: a training step with the random or adversarial ray against a plain DDPM step.

A U-Net for 32x32 colour images, the same weights, batch, optimizer, clipping and average on each
side; in one process on one thread the sides take turns step by step, and a ratio is the median over
the rounds, in which drift and neighbours hit all sides. Passes are the engine's own counts; a
forward is one unit, a backward towards an input one, a backward towards parameters two for each
forward that it passes: 3 units for DDPM, 6 for the random ray, 8 for one adversarial step. Freed
memory is kept for the next step, as `advdiff train` does, on all sides alike. Memory is the growth
of the peak resident set over a few steps, each side in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from advdiff_core.engine.distributed import World
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.engine.trainer import Trainer
from advdiff_core.types import Cost
from tests.bench.sides import (
    costs_of,
    in_turns,
    memory_of,
    peak_growth,
    pictures,
    ratios,
    trainer_of,
)

BATCH, ROUNDS, WARM_UP, MEMORY_STEPS = 16, 24, 3, 3
RAYS = {"plain": "", "random": "ray-random", "adversarial": "ray-fgsm"}
UNITS = {"plain": 3, "random": 6, "adversarial": 8}
#: Most that a step may take, and hold in memory, against a plain one.
TIME, MEMORY = {"random": 2.05, "adversarial": 2.75}, 2.1


def trainer(side: str, precision: str, images: Path) -> Trainer:
    """One side, past the contract checks of the first steps."""
    tables: dict[str, Any] = {
        "advdiff": 1,
        "run": {"seed": 1, "batch": BATCH, "micro_batch": BATCH, "precision": precision,
                "images": 10**9, "threads": 1},
        "data": {"use": "tensor-file", "path": str(images)},
        "models": {"student": {"use": "unet", "channels": 32, "channel_mult": [1, 2, 2],
                               "blocks": 1, "attention": [8]}},
        "terms": {"denoise": {"use": "denoise"}},
        "players": {"student": {"terms": ["denoise"], "optimizer": {"use": "adamw", "lr": 1e-4},
                                "ema": [0.999], "clip": 1.0}},
    }  # fmt: skip
    if RAYS[side]:
        tables["views"] = {"adv": {"from": "clean", "perturb": {"use": RAYS[side]}}}
        tables["terms"]["equivariance"] = {"use": "equivariance", "weight": 0.3}
        tables["players"]["student"]["terms"] = ["denoise", "equivariance"]
    return trainer_of(tables)


def units_of(cost: Cost) -> int:
    """Forward units of a step; each input-only backward belongs to a forward of its own."""
    trained = cost.forwards - cost.input_backwards
    return cost.forwards + cost.input_backwards + 2 * trained * cost.parameter_backwards


def compare(precision: str, images: Path) -> list[dict[str, object]]:
    """The entries of one precision."""
    sides = {side: trainer(side, precision, images) for side in RAYS}
    costs = {side: costs_of(one)["student"] for side, one in sides.items()}
    # Same weights, samples, times and noise: the sides begin at one loss.
    losses = [one.stats.means(World())["loss/denoise"] for one in sides.values()]
    times, busy = in_turns(sides, rounds=ROUNDS, warm_up=WARM_UP)
    memory = {side: memory_of("robustadv", side, precision, str(images)) for side in sides}
    return [
        _entry(side, precision, times, busy, costs[side], memory, same_loss=len(set(losses)) == 1)
        for side in ("random", "adversarial")
    ]


def _entry(
    side: str, precision: str, times: dict[str, list[float]], busy: dict[str, list[float]],
    cost: Cost, memory: dict[str, int], *, same_loss: bool,
) -> dict[str, object]:  # fmt: skip
    found = ratios(times, side, "plain")
    ratio, growth = statistics.median(found), memory[side] / memory["plain"]
    right = same_loss and units_of(cost) == UNITS[side]
    return {
        "name": f"{side} ray, {precision}",
        "ours": statistics.median(times[side]),
        "peer": statistics.median(times["plain"]),
        "ratio": ratio,
        "spread": [found[len(found) // 4], found[3 * len(found) // 4]],
        "ratio of processor seconds": statistics.median(ratios(busy, side, "plain")),
        "target": TIME[side],
        "forwards": cost.forwards,
        "input-only backwards": cost.input_backwards,
        "parameter backwards": cost.parameter_backwards,
        "forward units, plain 3": units_of(cost),
        "same first loss as plain": same_loss,
        "memory": memory[side],
        "memory of plain": memory["plain"],
        "memory ratio": growth,
        "memory target": MEMORY,
        "ok": right and ratio <= TIME[side] and growth <= MEMORY,
    }


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder))
        return [entry for precision in ("fp32", "bf16") for entry in compare(precision, images)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(
        json.dumps(peak_growth(trainer(sys.argv[1], sys.argv[2], Path(sys.argv[3])), MEMORY_STEPS))
    )
