"""The golden numbers: two steps of each shipped recipe at a small batch, in float32.

    python -m tests.golden.record        writes tests/golden/steps.json anew; say why in the commit

A change that should not alter results shows this file unchanged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("steps.json")
OVERRIDES = ("run.batch=8", "run.precision='fp32'", "run.channels_last=false")
STEPS = 2


def shipped() -> list[Path]:
    """Every recipe of the repository, as sorted paths."""
    found = [*ROOT.glob("examples/*.toml"), *ROOT.glob("plugins/*/src/*/recipes/*.toml")]
    return sorted([*found, ROOT / "tests" / "recipes" / "players.toml"])


def compute(path: Path) -> dict[str, Any]:
    """Mean losses, gradient norms, a sum over the weights, and passes of the first steps."""
    trainer = Trainer(
        assemble(load_recipe(path, OVERRIDES)), world=World(), ticks=None, stop=StopFlag()
    )  # type: ignore[arg-type]
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


def main() -> None:
    """Write the file."""
    torch.set_num_threads(1)
    found = {str(path.relative_to(ROOT)): compute(path) for path in shipped()}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
