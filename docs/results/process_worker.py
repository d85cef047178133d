"""One process of several that train a list of recipes in turn; `processes.py` starts it.

Imports take longer than these trainings: they are done once for all of them. `double` makes
weights, networks, losses, gradients and optimizers float64; samples and noise stay float32.

    python process_worker.py JOBS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from advdiff_core.engine.api import train
from advdiff_core.engine.distributed import joined_world
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.manager import Hooks
from advdiff_core.recipe import load_recipe, recipe_from_dict


def do(job: Mapping[str, Any]) -> None:
    """Train by tables of a recipe, or go on with a run."""
    hooks = Hooks()
    hooks.add(JsonLines(), name="jsonl")
    if "resume" in job:
        run = Path(job["resume"])
        train(load_recipe(run / "recipe.lock.toml"), resume=run, hooks=hooks)
        return
    recipe = recipe_from_dict(job["tables"])
    with float64() if job.get("double") else plainly():
        train(recipe, out=Path(job["out"]), hooks=hooks)


@contextmanager
def plainly() -> Iterator[None]:
    """As recipes have it, in float32."""
    yield


@contextmanager
def float64() -> Iterator[None]:
    """New weights are float64, and so is what networks are given."""
    torch.set_default_dtype(torch.float64)
    handle = register_module_forward_pre_hook(_widened)
    try:
        yield
    finally:
        handle.remove()
        torch.set_default_dtype(torch.float32)


def _widened(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    del module
    return tuple(
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for value in given
    )


def main() -> None:
    """Join the others, and do the jobs in order."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with joined_world(timeout_s=600.0):
        for job in jobs:
            do(job)


if __name__ == "__main__":
    main()
