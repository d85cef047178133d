"""What one image of training costs: planned from the recipe, and counted while it is trained.

Operations are those of advdiff_core/engine/flops.py. Bytes are those a process holds for weights,
optimizer and averages, and those autograd keeps per image. Communication is what a process hands to
its peers per step: a sum of every gradient that its players took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advdiff_core.cli.options import recipe_path
from advdiff_core.engine import assemble as assembling
from advdiff_core.engine import parts as parting
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.distributed import World, joined_world
from advdiff_core.engine.flops import flops_per_image, role_macs
from advdiff_core.engine.micro import saved_bytes_per_image
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.size import parameters_of
from advdiff_core.engine.trainer import Trainer
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.recipe import Recipe, load_recipe
from advdiff_core.types import Batch, DataInfo

BATCH = 4
SMALL = (f"run.batch={BATCH}", f"run.micro_batch={BATCH}", "run.precision=fp32", "run.device=cpu")
#: Bytes of a number.
WIDE = 4


def small(name: str, *overrides: str) -> Recipe:
    """A shipped recipe with a batch that a test machine can train."""
    return load_recipe(recipe_path(name), (*SMALL, *overrides))


def trainer_of(recipe: Recipe, world: World | None = None) -> Trainer:
    """A trainer in the middle of its run, past the contract checks."""
    world = world or World()
    made = Trainer(
        assemble(recipe, world=world),
        world=world,
        ticks=None,
        stop=StopFlag(),  # type: ignore[arg-type]
    )
    made.index, made.nimg = 240, recipe.run.images // 2
    return made


def planned_flops(made: Experiment, nimg: int | None = None) -> float:
    """Operations per image, by the plan."""
    found = flops_per_image(made, nimg=nimg)
    assert found is not None
    return found


def counted_flops(trainer: Trainer, steps: int) -> float:
    """Operations per image, as torch counts them over some steps."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for _ in range(steps):
            trainer.train_step()
    return float(counter.get_total_flops()) / (steps * trainer.batch)


def trained(made: Experiment) -> int:
    """Numbers that some player moves."""
    return sum(p.numel() for player in made.players for _, p in player.parameters)


def planned_state(made: Experiment) -> int:
    """Bytes of weights, averages and optimizers, by their rules."""
    terms = [term.module for player in made.players for term in player.terms]
    weights = sum(_held(one) for one in [*(r.module for r in made.scene.roles.values()), *terms])
    averages = sum(
        len(emas) * _held(made.scene.roles[role].module)
        for player in made.players
        for role, emas in player.emas.items()
    )
    optimizers = sum(
        _beside(group, p)
        for player in made.players
        for group in player.optimizer.param_groups
        for p in group["params"]
    )
    return weights + averages + optimizers


def _held(module: nn.Module) -> int:
    """Bytes of weights and statistics."""
    return sum(_bytes(tensor) for tensor in module.state_dict().values())


def _beside(group: dict[str, Any], parameter: torch.Tensor) -> int:
    """Bytes an optimizer keeps beside a parameter: Adam's moments and counter, or a momentum."""
    if "betas" in group:
        return 2 * _bytes(parameter) + WIDE
    return _bytes(parameter) * bool(group.get("momentum", 0.0))


def counted_state(trainer: Trainer) -> int:
    """Bytes of the tensors that a checkpoint holds of models, averages and optimizers."""
    shared, _ = trainer.state()
    return _bytes({key: value for key, value in shared.items() if key != "stats"})


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def planned_sent(made: Experiment) -> float:
    """Bytes of gradients that a process hands over per step, on average."""
    total = 0.0
    for player in made.players:
        updates = player.passes if player.moves else 1
        syncs = updates + (player.passes if player.phase().displaced else 0)
        numbers = sum(p.numel() for _, p in player.parameters)
        total += WIDE * numbers * syncs / player.every
    return total


def counted_sent(name: str, steps: int, *overrides: str) -> float:
    """The same, counted in two processes over some steps."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        __file__, name, str(steps), *overrides,
    ]  # fmt: skip
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return float(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def counting(names: tuple[str, ...]) -> Iterator[list[int]]:
    """Count the bytes of the first tensor of these collectives."""
    sizes: list[int] = []
    kept = {name: getattr(torch.distributed, name) for name in names}

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def sent(tensor: torch.Tensor, *args: Any, **keys: Any) -> Any:
            # Votes and means of losses are no gradients.
            if tensor.is_floating_point() and tensor.dtype != torch.float64:
                sizes.append(tensor.numel() * tensor.element_size())
            return call(tensor, *args, **keys)

        return sent

    for name, call in kept.items():
        setattr(torch.distributed, name, watched(call))
    try:
        yield sizes
    finally:
        for name, call in kept.items():
            setattr(torch.distributed, name, call)


def _rank(name: str, steps: int, overrides: list[str]) -> None:
    """What one of two processes does: train, and say what it handed over per step."""
    with joined_world() as world:
        trainer = trainer_of(small(name, *overrides), world)
        with counting(("all_reduce",)) as sizes:
            for _ in range(steps):
                trainer.train_step()
        if world.is_main:
            # A number or two of the loss is summed beside the gradients.
            print(json.dumps(sum(size for size in sizes if size > 4 * WIDE) / steps))


class StandIn(Dataset):
    """Samples of a shape, all zero: what a network costs does not depend on them."""

    def __init__(self, info: DataInfo, pictures: DataInfo | None) -> None:
        self._info, self._pictures = info, pictures

    @property
    def info(self) -> DataInfo:
        """As it was told."""
        return self._info

    @property
    def pictures(self) -> DataInfo | None:
        """As it was told."""
        return self._pictures

    def batch(self, indices: torch.Tensor) -> Batch:
        """Zeros, of the first class."""
        x = torch.zeros(len(indices), *self._info.shape)
        return Batch(x, torch.zeros_like(indices) if self._info.classes else None)

    def fingerprint(self) -> str:
        """A name."""
        return "stand-in"


@contextmanager
def weightless(info: DataInfo, pictures: DataInfo | None = None) -> Iterator[None]:
    """Networks without numbers and data without content: a recipe of any size fits this machine."""
    make, place = parting.make, assembling._place

    def ghost(spec: Any, build: Any) -> Any:
        if spec.kind == "dataset":
            return StandIn(info, pictures)
        if spec.kind not in ("backbone", "discriminator", "alignment_target"):
            return make(spec, build)
        with torch.device("meta"):
            return make(spec, build)

    parting.make = assembling.make = ghost
    assembling._place = lambda *_, **__: None
    try:
        yield
    finally:
        parting.make = assembling.make = make
        assembling._place = place


def size_of(made: Experiment, role: str) -> tuple[int, int | None]:
    """Parameters of a role, and multiply-accumulates of its forward."""
    return parameters_of(made.scene.roles[role].module), role_macs(made, role)


def activations(made: Experiment) -> float:
    """Bytes that autograd keeps per image of a step."""
    return saved_bytes_per_image(made)


if __name__ == "__main__":
    _rank(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
