"""How much of what a device multiplies at best a training uses: model FLOP utilisation (MFU)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import define, field
from torch import Tensor

from advdiff_core.engine.flops import flops_per_image

if TYPE_CHECKING:
    from advdiff_core.engine.trainer import Trainer

__all__ = ["AFTER", "Utilisation", "matrix_rate"]

#: Seconds of training before anything is measured: short runs do not wait for it.
AFTER = 10.0
#: Sides of the matrices, by type of device: small ones are done between two others' turns, large
#: ones keep all of a device busy.
SIDES = {"cuda": (4096, 8192), "cpu": (512, 1024, 2048)}
ROUNDS = 8
#: Seconds after which no other product is begun.
ENOUGH = 0.5


def matrix_rate(device: torch.device, dtype: torch.dtype, *, sides: Sequence[int] = ()) -> float:
    """The best rate of a square matrix product, in operations per second.

    Random numbers are multiplied, since a GPU clocks higher on constant ones.

    Args:
        device: Where.
        dtype: Of factors and product.
        sides: Rows and columns to try; as fit the device if empty.
    """
    generator = torch.Generator(device).manual_seed(0)
    best, until = 0.0, time.perf_counter() + ENOUGH
    for side in sides or SIDES.get(device.type, SIDES["cpu"]):
        a = torch.randn(side, side, generator=generator, device=device).to(dtype)
        for _ in range(1 + ROUNDS):
            best = max(best, 2.0 * side**3 / _seconds(a))
            if time.perf_counter() > until:
                return best
    return best


@torch.no_grad()
def _seconds(a: Tensor) -> float:
    _wait(a.device)
    began = time.perf_counter()
    a @ a
    _wait(a.device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@define(kw_only=True, eq=False)
class Utilisation:
    """Model operations per second of a training, and their share of the rate of matrix products.

    The rate is measured once, in the type that networks run in, beside whatever else the machine
    does; it counts for each process. Operations are those of the terms active at the time.

    Attributes:
        after: Seconds of training before anything is measured.
    """

    after: float = AFTER
    _began: float = field(factory=time.monotonic, init=False)
    _rate: float = field(default=0.0, init=False)
    _flops: dict[tuple[bool, ...], float | None] = field(factory=dict, init=False)

    def of(self, trainer: Trainer, images_per_s: float) -> dict[str, float]:
        """`mfu` and `model_tflops` at this speed; {} early in a run, or where nothing is counted.

        Args:
            trainer: The training.
            images_per_s: Images per second of all processes together.
        """
        if time.monotonic() - self._began < self.after:
            return {}
        flops = self._counted(trainer)
        if flops is None:
            return {}
        compute = trainer.scene.compute
        if not self._rate:
            self._rate = matrix_rate(compute.device, compute.autocast or torch.float32)
        done = flops * images_per_s
        return {"mfu": done / (self._rate * trainer.world.size), "model_tflops": done / 1e12}

    def _counted(self, trainer: Trainer) -> float | None:
        """Operations per image, counted anew when other terms are active."""
        nimg = trainer.nimg
        terms = [term for player in trainer.experiment.players for term in player.terms]
        active = tuple(term.active(nimg) for term in terms)
        if active not in self._flops:
            share = trainer.micro >= trainer.local
            self._flops[active] = flops_per_image(trainer.experiment, nimg=nimg, share=share)
        return self._flops[active]
