"""Perturbations and an attack, each in its smallest form."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_core import (
    Attack,
    Budget,
    Build,
    Draws,
    Noised,
    Perturbation,
    Probe,
    SearchCost,
    Victim,
    expand,
)
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["ToyFGSM", "ToyFree", "ToyShift"]


@settings
class _Ball:
    """Where a perturbation may go."""

    norm: Literal["linf", "l2", "l1"] = setting("l2", help="norm of the ball")
    radius: float = setting(0.5, ge=0.0, help="radius of the ball, in `unit`")
    unit: Literal["image", "noise", "pixel"] = setting("image", help="what delta is added to")


class _InBall(Perturbation):
    """A constant budget from the settings."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.unit = settings.unit

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The ball of the settings."""
        del noised, rng
        return Budget(self.settings.norm, self.settings.radius, self.settings.unit)


class ToyFree(_InBall):
    """Free adversarial training: starts at zero and climbs the training gradient (FreeLB)."""

    free = True

    @settings
    class Settings(_Ball):
        """Keys of `use = "toy-free"`."""

        step: float = setting(0.2, gt=0.0, help="length of a step, as the norm measures it")

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Nothing yet."""
        del budget, probe, rng
        return torch.zeros_like(noised.x_t)

    def update(self, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        """A normalised step uphill."""
        ahead: Tensor = delta + self.settings.step * norms.steepest_ascent(gradient, budget.norm)
        return ahead


class ToyShift(_InBall):
    """Adds one random direction of fixed length; needs no network."""

    @settings
    class Settings(_Ball):
        """Keys of `use = "toy-shift"`."""

        follows: bool = setting(True, help="the target moves with the perturbation")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.follows = settings.follows

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """A random direction, of a length that the budget cuts."""
        del budget, probe
        return 1e3 * rng.normal(noised.x_t.shape).to(noised.x_t.dtype)


class ToyFGSM(Attack):
    """Signed gradient steps of the size of the radius, from the input or a random start."""

    @settings
    class Settings:
        """Keys of `use = "toy-fgsm"`."""

        steps: int = setting(1, ge=1, help="steps")
        random_start: bool = setting(False, help="start anywhere in the ball")

    keeps_best = False

    def cost(self) -> SearchCost:
        """One forward and backward per step."""
        return SearchCost(self.settings.steps, self.settings.steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Climb the victim's loss."""
        del domain
        radius = expand(torch.as_tensor(budget.radius), x)
        found = x
        if self.settings.random_start:
            inside = norms.uniform_in_ball(x.shape, norm=budget.norm, radius=1.0, draws=rng)
            found = x + inside * radius
        for _ in range(self.settings.steps):
            found = found.detach().requires_grad_()
            gradient = input_gradient(victim.loss(victim.outputs(found)), found)
            found = found.detach() + radius * norms.steepest_ascent(gradient, budget.norm)
        return found
