"""Perturbations of the noised sample: free, and by projected gradient steps."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advdiff_atdiff import balls
from advdiff_core import Budget, Build, Draws, Noised, Perturbation, Probe
from advdiff_core.settings import setting, settings

__all__ = ["Free"]

#: The paper, for `advdiff explain`; the README says how certain each part is.
SOURCE = "Improved Diffusion-based Generative Model with Better Adversarial Robustness (2502.17099)"


@settings
class BallSettings:
    """Keys of the ball and of the steps in it."""

    alpha: float = setting(0.1, ge=0.0, help="L2 length of a step over a whole sample")
    rho: float = setting(0.1, ge=0.0, help="radius of the ball, as a root mean square per entry")
    norm: Literal["l2", "linf", "l1"] = setting("l2", help="norm of the ball and of the steps")
    top: int = setting(
        1, ge=1, applies=("norm", ("l1",)), help="entries that a step moves, the largest first"
    )
    target: Literal["moved", "fixed"] = setting(
        "moved", help="whether the noise that explains the moved input is the target, or eps as is"
    )
    ascent: Literal["full", "frozen"] = setting(
        "full", help="whether the moved target is part of the ascent's gradient, or a constant"
    )


class Ball(Perturbation):
    """A ball around `x_t`, of one size in every norm."""

    settings: Any
    source: ClassVar[str] = SOURCE
    unit: Literal["image"] = "image"

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.follows = settings.target == "moved"

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The ball of the settings."""
        del rng
        size, entries = noised.x_t.shape[0], noised.x_t[0].numel()
        rms = noised.x_t.new_full((size,), self.settings.rho)
        return Budget(self.settings.norm, balls.radius(rms, self.settings.norm, entries), "image")

    def ahead(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Delta [B, ...] after one step along `gradient` [B, ...]."""
        keys = self.settings
        return balls.ascend(delta, gradient, alpha=keys.alpha, norm=keys.norm, top=keys.top)


class Free(Ball):
    """Free adversarial training: delta learns from the backward passes that train the weights.

    FOUND: delta starts at zero with each batch and takes a step of L2 length `alpha` after each
    of the `passes` of its player but the last, inside a ball of radius `rho sqrt(D)`.
    """

    @settings
    class Settings(BallSettings):
        """Keys of `use = "free"`."""

    settings: Settings
    free: ClassVar[bool] = True

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Zero: the first pass is plain training."""
        del budget, probe, rng
        return torch.zeros_like(noised.x_t)

    def update(self, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        """One step uphill; the core projects it."""
        del budget
        return self.ahead(delta, gradient)
