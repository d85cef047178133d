"""Golden numbers: what the first steps of a recipe compute, to be compared with later.

A change that should not alter results leaves them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe

__all__ = ["STEPS", "differences", "first_steps"]

#: The same on every machine, as far as machines agree.
OVERRIDES = (
    "run.batch=8", "run.precision='fp32'", "run.channels_last=false", "run.device='cpu'",
    # What `auto` takes depends on the memory that is free, and statistics of batches on it.
    "run.micro_batch=8",
)  # fmt: skip
STEPS = 2
#: Relative tolerances: losses and gradient norms, and sums over all weights of a role.
MEANS, WEIGHTS = 1e-3, 1e-5


def first_steps(recipe: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Mean losses, gradient norms, a sum over the weights, and passes of the first steps.

    Args:
        recipe: The recipe's file; it is run on the CPU in float32, with a batch of 8.
        overrides: `key=value` texts, for example where its data are.

    Raises:
        AdvdiffError: If the recipe is refused, its data are missing, or a step fails.
    """
    # Steps are taken one by one: nothing ticks.
    ticks: Any = None
    experiment = assemble(load_recipe(recipe, [*OVERRIDES, *overrides]))
    trainer = Trainer(experiment, world=World(), ticks=ticks, stop=StopFlag())
    for _ in range(STEPS):
        trainer.train_step()
    roles = trainer.scene.roles
    weights = {
        name: sum(float(p.detach().double().abs().sum()) for p in role.module.parameters())
        for name, role in roles.items()
    }
    passes = {
        name: [role.cost.forwards, role.cost.input_backwards, role.cost.parameter_backwards]
        for name, role in roles.items()
    }
    return {"means": trainer.stats.means(World()), "weights": weights, "passes": passes}


def differences(found: Mapping[str, Any], golden: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was recorded, one sentence each; rounding does not count.

    Args:
        found: What `first_steps` says now.
        golden: What it said.
    """
    for table, tolerance in (("passes", 0.0), ("means", MEANS), ("weights", WEIGHTS)):
        now, then = found.get(table, {}), golden.get(table, {})
        for name in sorted({*now, *then}):
            if name not in now or name not in then:
                yield f"{table} of {name!r} {'are new' if name in now else 'are gone'}"
            elif not _same(now[name], then[name], tolerance):
                yield f"{table} of {name!r} are {_text(now[name])}, were {_text(then[name])}"


def _same(now: Any, then: Any, tolerance: float) -> bool:
    if tolerance == 0.0:
        return bool(now == then)
    return math.isclose(now, then, rel_tol=tolerance, abs_tol=1e-12)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
