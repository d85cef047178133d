"""A step does not wait for the device: a number is read on the host once a turn, and no more.

What is read is whether loss and gradients are finite, before the optimizer may move. On a GPU each
further read would let it run dry.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.golden import OVERRIDES
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe
from tests.golden.record import overrides, shipped, stand_in

#: Operations whose result, or its shape, has to be known on the host.
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"}
#: Recipes and the optimizer steps that one training step of them takes.
TURNS = {"quickstart": 1, "players": 2, "digits-free": 3, "cifar10-trades": 1}


class Reads(TorchDispatchMode):
    """Counts what the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        self.found.update([name] if name in READS else [])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TURNS)
def test_a_step_reads_one_number_a_turn(name: str, tmp_path: Path) -> None:
    """Whatever is searched, shared or trained in turns."""
    stand_in(tmp_path)
    path = next(path for path in shipped() if path.stem == name)
    made = assemble(load_recipe(path, [*OVERRIDES, *overrides(path, tmp_path)]))
    ticks: Any = None
    trainer = Trainer(made, world=World(), ticks=ticks, stop=StopFlag())
    # The first two steps also check contracts, which reads numbers.
    for _ in range(2):
        trainer.train_step()
    with Reads() as reads:
        trainer.train_step()
    assert reads.found == {"aten::_local_scalar_dense": TURNS[name]}


def test_reads_are_seen() -> None:
    """The counter counts."""
    with Reads() as reads:
        float(torch.ones(()))
        torch.ones(3).nonzero()
    assert reads.found == {"aten::_local_scalar_dense": 1, "aten::nonzero": 1}
