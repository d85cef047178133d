"""Attacks: adversarial inputs for any differentiable scalar."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, final

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Component
from advdiff_core.interfaces.perturbation import SearchCost
from advdiff_core.math import norms
from advdiff_core.types import Budget, Domain, Norm

if TYPE_CHECKING:
    from advdiff_core.draws import Draws

__all__ = ["Attack", "ScalarVictim", "Victim"]


class Victim(Protocol):
    """What is attacked: a function of the input, and what the attacker wants of it.

    A classifier's victim returns logits from `outputs` and the true classes from `labels`; that of
    a denoiser or sampler returns the tensor whose `loss` is to grow, and has no labels. A test
    counts the calls of `outputs`.
    """

    @property
    def labels(self) -> Tensor | None:
        """True classes [B], int64; None where `outputs` are no logits.

        An attack that brings a loss of its own (margin, DLR, a target class) computes it from
        logits and labels, and climbs `loss` where there are none.
        """

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs [B, ...] at inputs `x` [B, ...], with a graph to `x`; parameters are frozen."""

    def loss(self, outputs: Tensor) -> Tensor:
        """The attacker's objective per sample [B]; larger is worse for the victim."""

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples already beaten [B], bool; None where that is undefined."""

    def rows(self, rows: Tensor) -> Victim | None:
        """The same victim for the samples `rows` [N], int64; None if they cannot be taken apart.

        Attacks drop settled samples with it. Where it is None all samples stay to the end.
        """


@frozen(kw_only=True, eq=False)
class ScalarVictim:
    """Any scalar of anything that follows from an input, as what is attacked.

    The value of a query at a moved input of a view, far from what it was there::

        step.get(Features("student", "image", "block2"))  # once, as `clean`
        victim = ScalarVictim(
            function=lambda x: step.at("image", x).get(Features("student", "image", "block2")),
            scalar=lambda found: (found - clean).square().flatten(1).mean(1),
        )

    Or a sampler's output, whose start is moved: `function` samples from it, with `grad_steps`, and
    `scalar` is a distance from what came of the clean start.

    Attributes:
        function: From inputs [B, ...] to a value [B, ...], with a graph to the input.
        scalar: From that value to the objective [B]; larger is worse for the victim.
        labels: True classes [B] if the value is logits [B, K]; else None.
    """

    function: Callable[[Tensor], Tensor]
    scalar: Callable[[Tensor], Tensor]
    labels: Tensor | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """The value [B, ...] at inputs `x` [B, ...].

        Raises:
            ContractError: If the value does not depend on the input, so that nothing moves it.
        """
        value = self.function(x)
        if x.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
            message = "what is attacked does not depend on the input that is moved"
            fix = "let it read the view, or tensor, that the attack moves, and detach nothing"
            raise ContractError(message, fix=fix)
        return value

    def loss(self, outputs: Tensor) -> Tensor:
        """The objective [B] of values `outputs` [B, ...]."""
        return self.scalar(outputs)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples whose `outputs` [B, K] name another class [B]; None where there are no labels."""
        return None if self.labels is None else outputs.argmax(dim=1).ne(self.labels)

    def rows(self, rows: Tensor) -> None:
        """Nothing for the samples `rows` [N]: the functions know the whole batch alone."""
        del rows


class Attack(Component):
    """Searches an input near `x` that makes a victim's loss large.

    Subclasses implement `search`; the final `run` projects the result onto the budget and the
    domain. Contract: the model is left byte-identical (parameters, buffers, grads, mode flags) and
    the global random state untouched; all randomness comes from `rng`; a zero radius returns `x`
    bit for bit. What is returned is never worse for the attacker than `x` itself: a sample that is
    beaten at `x` stays beaten, and by the attack's own objective no sample is worse off unless it
    is beaten now (but see `keeps_best`).

    Attributes:
        norms: Norms it can search in; others are refused.
        minimal_norm: True if it looks for the smallest perturbation that breaks a sample, whatever
            the radius: one search then answers for every radius, and samples that it cannot break
            within the radius come back as they were.
        keeps_best: False if it returns where it ended, better than `x` or not, as the attacks of
            training loops do to save a forward. May be set in `__init__`.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")
    minimal_norm: ClassVar[bool] = False
    keeps_best: bool = True

    def objective(self, victim: Victim, clean: Tensor) -> Callable[[Tensor], Tensor] | None:
        """What a search climbs, as a loss [B] of outputs [B, ...]; larger is better for it.

        None (the default) if there are several or none that points can be compared by; then the
        verdicts alone say whether a point is better.

        Args:
            victim: What is attacked.
            clean: Outputs [B, ...] at the clean inputs.
        """
        del victim, clean
        return None

    def members(self) -> Mapping[str, Attack]:
        """Attacks that this one runs in turn on the samples left, by name; none by default.

        An evaluation runs them one by one, to tell which of them broke a sample and to go on after
        a kill. `search` has to find the same: each member gets the samples that no earlier one
        broke, and draws from `rng.child(name)`.
        """
        return {}

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
            ContractError: If the attack does not know the norm, or `search` returns another shape.
        """
        if budget.norm not in self.norms:
            message = f"cannot search in {budget.norm}, only in {', '.join(self.norms)}"
            fix = f'write norm = "{self.norms[0]}", or take another attack'
            raise ContractError(message, where=self.build.path, fix=fix)
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
