"""Attacks that step along the gradient towards the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_attacks.objectives import LossName, objective_of
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim, expand
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["FGSM"]


class FGSM(Attack):
    """One step of the whole radius along the steepest direction (Goodfellow et al. 2015)."""

    @settings
    class Settings:
        """Keys of `use = "fgsm"`."""

        loss: LossName = setting("victim", help="what grows; victim: what is given to the attack")

    settings: Any

    def cost(self) -> SearchCost:
        """One forward and one gradient."""
        return SearchCost(1, 1)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        del domain, rng
        x = x.detach().requires_grad_()
        outputs = victim.outputs(x)
        loss = objective_of(victim, self.settings.loss, outputs)(outputs)
        gradient = input_gradient(loss, x)
        step = expand(torch.as_tensor(budget.radius), x) * norms.steepest_ascent(
            gradient, budget.norm
        )
        return x.detach() + step
