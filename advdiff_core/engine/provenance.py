"""What a run was made with: versions, hardware, and the level of repeatability that follows."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from advdiff_core.recipe import Recipe
from advdiff_core.step.scene import Compute

__all__ = ["provenance", "resume_level"]

#: Facts that must be equal for a resumed run to be bit-identical to one that never stopped.
EXACT = (
    "torch",
    "threads",
    "cpu_capability",
    "device",
    "device_name",
    "world",
    "autocast",
    "machine",
)


def provenance(recipe: Recipe, compute: Compute, *, world: int) -> dict[str, Any]:
    """Versions and hardware of this process."""
    device = compute.device
    return {
        "advdiff_core": metadata.version("advdiff-core"),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "platform": sys.platform,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": str(device.type),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "autocast": str(compute.autocast),
        "channels_last": compute.channels_last,
        "world": world,
        "recipe_hash": recipe.recipe_hash,
    }


def resume_level(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Level of repeatability of a resumed run, and what keeps it from being exact.

    Returns:
        "L0" (bit-identical), "L1" (same order, rounding may differ) or "L2" (other world
        size), and the differences as `name: old -> new`.
    """
    changed = [
        f"{name}: {saved.get(name)} -> {now.get(name)}"
        for name in EXACT
        if saved.get(name) != now.get(name)
    ]
    if not changed:
        return "L0", []
    return ("L2" if saved.get("world") != now.get("world") else "L1"), changed
