"""AT_Diff: free and projected adversarial training against plain steps, and in distillation.

A U-Net for 32x32 colour images, the same weights, batch, optimizer, clipping and average on each
side; in one process on one thread the sides take turns step by step, and a ratio is the median over
the rounds, in which drift and neighbours hit all sides. Passes are the engine's own counts; a
forward is one unit, a backward towards an input one, a backward towards parameters two. A step on
a batch: plain training 3 units; free training of K = 3 passes 9, for three updates; three projected
gradient steps and one update 9. Consistency distillation with two forwards of the teacher and one
of the target network 6; with three free passes that move the student's input (option A), where the
teacher's point is kept, 14. Freed memory is kept for the next step, as `advdiff train` does, on all
sides alike. Memory is the growth of the peak resident set over a few steps, each side in a process
of its own.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

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

BATCH, ROUNDS, WARM_UP, MEMORY_STEPS, PASSES = 16, 16, 2, 3, 3


class Side(NamedTuple):
    """A way to train.

    Attributes:
        base: What it is compared with; itself for a base.
        units: Forward units of a step.
        updates: Optimizer updates of a step.
        time: Most that a step may take against its base.
        memory: Most that it may hold against its base; 0 for any.
        perturb: What moves the input; "" for nothing.
    """

    base: str
    units: int
    updates: int = 1
    time: float = 1.0
    memory: float = 0.0
    perturb: str = ""


SIDES = {
    "plain": Side("plain", 3),
    "free": Side("plain", 9, PASSES, 3.1, 1.1, "free"),
    "pgd": Side("plain", 9, 1, PASSES + 1.05, perturb="pgd"),
    "distilled": Side("distilled", 6),
    "distilled free": Side("distilled", 14, PASSES, 2.4, perturb="free"),
}
UNET = {"use": "unet", "channels": 32, "channel_mult": [1, 2, 2], "blocks": 1, "attention": [8]}
EDM = {**UNET, "parametrization": "edm"}
DISTILLED: dict[str, Any] = {
    "schedule": {"use": "edm", "density": {
        "sampler": {"use": "consistency-grid", "curriculum": "constant", "levels": 18}}},
    "models": {"teacher": {**EDM, "frozen": True}, "student": EDM,
               "target": {**EDM, "follow": {"role": "student", "rate": 0.95}}},
    "terms": {"loss": {"use": "consistency-distillation", "solver": "heun"}},
}  # fmt: skip


def trainer(name: str, precision: str, images: Path) -> Trainer:
    """One side, past the contract checks of the first steps."""
    side = SIDES[name]
    tables: dict[str, Any] = {
        "advdiff": 1,
        "run": {"seed": 1, "batch": BATCH, "micro_batch": BATCH, "precision": precision,
                "images": 10**9, "threads": 1},
        "data": {"use": "tensor-file", "path": str(images)},
        "models": {"student": UNET},
        "terms": {"loss": {"use": "denoise"}},
        **(DISTILLED if side.base == "distilled" else {}),
        "players": {"student": {"terms": ["loss"], "optimizer": {"use": "adamw", "lr": 1e-4},
                                "ema": [0.999], "clip": 1.0,
                                "passes": side.updates, "update": "pass"}},
    }  # fmt: skip
    if side.perturb:
        tables["views"] = {"adv": {"from": "clean", "perturb": {"use": side.perturb}}}
        tables["terms"] = {"loss": {**tables["terms"]["loss"], "view": "adv"}}
    return trainer_of(tables)


def units_of(costs: dict[str, Cost]) -> int:
    """Forward units of a step; each backward towards parameters passes one forward."""
    return sum(
        cost.forwards + cost.input_backwards + 2 * cost.parameter_backwards
        for cost in costs.values()
    )


def compare(precision: str, images: Path) -> list[dict[str, object]]:
    """The entries of one precision."""
    sides = {name: trainer(name, precision, images) for name in SIDES}
    costs = {name: costs_of(side) for name, side in sides.items()}
    times, busy = in_turns(sides, rounds=ROUNDS, warm_up=WARM_UP)
    memory = {name: memory_of("atdiff", name, precision, str(images)) for name in SIDES}
    return [
        _entry(name, precision, (times, busy), costs[name], memory)
        for name, side in SIDES.items()
        if side.base != name
    ]


def _entry(
    name: str, precision: str,
    seconds: tuple[dict[str, list[float]], dict[str, list[float]]],
    costs: dict[str, Cost], memory: dict[str, int],
) -> dict[str, object]:  # fmt: skip
    side, (times, busy) = SIDES[name], seconds
    found = ratios(times, name, side.base)
    ratio, growth = statistics.median(found), memory[name] / memory[side.base]
    whole = sum(costs.values(), start=Cost())
    light = not side.memory or growth <= side.memory
    return {
        "name": f"{name} against {side.base}, {precision}",
        "ours": statistics.median(times[name]),
        "peer": statistics.median(times[side.base]),
        "ratio": ratio,
        "spread": [found[len(found) // 4], found[3 * len(found) // 4]],
        "ratio of processor seconds": statistics.median(ratios(busy, name, side.base)),
        "target": side.time,
        "optimizer updates a batch": side.updates,
        "ratio for each update": ratio / side.updates,
        "forwards": whole.forwards,
        "input-only backwards": whole.input_backwards,
        "parameter backwards": whole.parameter_backwards,
        "forward units": units_of(costs),
        f"forward units, {side.base}": SIDES[side.base].units,
        "ratio by units": units_of(costs) / SIDES[side.base].units,
        "memory": memory[name],
        f"memory, {side.base}": memory[side.base],
        "memory ratio": growth,
        "memory target": side.memory or "none",
        "ok": ratio <= side.time and light and units_of(costs) == side.units,
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
