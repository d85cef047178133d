"""Attacks: adversarial inputs for any differentiable scalar."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol, final

import torch
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Component
from advdiff_core.interfaces.perturbation import SearchCost
from advdiff_core.math import norms
from advdiff_core.types import Budget, Domain

if TYPE_CHECKING:
    from advdiff_core.draws import Draws

__all__ = ["Attack", "Victim"]


class Victim(Protocol):
    """What is attacked: a function of the input, and what the attacker wants of it.

    A classifier's victim returns logits from `outputs`; attacks on a denoiser or sampler return the
    tensor whose `loss` is to grow. A test counts the calls of `outputs`.
    """

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [B, ...] at inputs `x` [B, ...], with a graph to `x`; parameters are frozen."""

    def loss(self, outputs: Tensor) -> Tensor:
        """The attacker's objective per sample [B]; larger is worse for the victim."""

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples already beaten [B], bool; None where that is undefined."""


class Attack(Component):
    """Searches an input near `x` that makes a victim's loss large.

    Subclasses implement `search`; the final `run` projects the result onto the budget and the
    domain. Contract: the model is left byte-identical (parameters, buffers, grads, mode flags) and
    the global random state untouched; all randomness comes from `rng`; a zero radius returns `x`
    bit for bit.
    """

    def cost(self) -> SearchCost:
        """Calls of `victim.outputs`, and gradients towards the input, of one search at most.

        The plan of a recipe that trains on the attack prints it.
        """
        return SearchCost()

    @abstractmethod
    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Propose adversarial inputs [B, ...]; need not respect budget or domain.

        Args:
            victim: What is attacked.
            x: Clean inputs [B, ...].
            budget: Norm and radius, in units of `x` (`unit` is "image").
            domain: Valid range of inputs, or None.
            rng: Random numbers of this attack.
        """

    @final
    def run(
        self, victim: Victim, x: Tensor, budget: Budget, *, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Adversarial inputs [B, ...] inside `budget` around `x` and inside `domain`.

        Raises:
            ContractError: If `search` returns another shape.
        """
        if budget.unit == "pixel":
            factor = domain.span if domain is not None else 1.0
            budget = Budget(budget.norm, budget.radius * factor, "image")
        radius = torch.as_tensor(budget.radius, dtype=torch.float32, device=x.device)
        radius = radius.expand(x.shape[0])
        whole = budget._replace(radius=radius)
        found = self.search(victim, x.detach(), whole, domain, rng).detach()
        if found.shape != x.shape:
            message = f"search returned shape {list(found.shape)}, wanted {list(x.shape)}"
            raise ContractError(message, where=self.build.path, fix="return one input per sample")
        moved = x + norms.project(found - x, norm=budget.norm, radius=radius)
        if domain is not None:
            moved = moved.clamp(domain.low, domain.high)
        return torch.where((radius > 0).reshape(-1, *([1] * (x.dim() - 1))), moved, x)
