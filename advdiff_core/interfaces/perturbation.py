"""Perturbations of a view: the plugin searches, the core enforces."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, final

import torch
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Component
from advdiff_core.math import norms
from advdiff_core.types import Budget, Domain, Noised, Unit, expand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from advdiff_core.draws import Draws
    from advdiff_core.interfaces.component import ModelInfo
    from advdiff_core.interfaces.query import Query, Step

__all__ = ["Perturbation", "Probe", "SearchCost", "scale_of"]


class SearchCost(NamedTuple):
    """What one search runs on the network, for the plan.

    Attributes:
        probes: How many times each query of `probes()` is evaluated at a moved input.
        input_backwards: Input-only backward passes.
    """

    probes: int = 0
    input_backwards: int = 0


class Probe(Protocol):
    """What a search may ask: declared queries of its base view, and the same at a moved input."""

    @property
    def base(self) -> str:
        """The view that is moved."""

    @property
    def step(self) -> Step:
        """The step; `get` answers the queries declared in `needs`, detached from parameters."""

    def at(self, delta: Tensor) -> Step:
        """A step whose base view is moved by `delta` [B, ...], in the budget's unit.

        Its target follows as that of the perturbed view will. Parameters are frozen in it. Ask it
        the queries declared in `probes`. Its forwards, and the backwards towards `delta`, are
        counted.
        """

    def gradient(self, objective: Tensor, delta: Tensor) -> Tensor:
        """Gradient [B, ...] of the summed objective [B] with respect to `delta` alone."""


class Perturbation(Component):
    """Moves the input of a view inside a `Budget`.

    Subclasses implement `budget` and `search`; the final method `perturb` projects what `search`
    proposes onto the budget, applies it and records delta, radius and target. A zero radius returns
    the base view's tensors unchanged, bit for bit.

    Attributes:
        follows: True if the target moves with the perturbation (the moved noise explains the moved
            input, x0 stays); False if the original noise stays the target.
        target_gradient: Whether a moved target is part of the gradient towards delta: of a free
            delta's, and of what a search climbs at moved inputs. False makes it a constant there.
        free: True if delta is a leaf that learns from the training backward (`passes` of a player
            > 1); then `update` is called after each pass.
        unit: What delta is added to; must equal the unit of the budget. May be set in `__init__`.
    """

    unit: Unit = "image"
    follows: bool = True
    target_gradient: bool = True
    free: ClassVar[bool] = False

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """Queries read from the unmoved step, shared with the terms; `base` is the view moved."""
        del base
        return ()

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """Queries evaluated at moved inputs during the search."""
        del base
        return ()

    def check_readers(self, readers: Mapping[str, ModelInfo]) -> None:
        """Refuse models for which the perturbation makes no sense; called once, before the run.

        Args:
            readers: The model roles that look at the view, or at a view made from it, by name.

        Raises:
            RecipeError: R10, in a subclass; by default all are welcome.
        """
        del readers

    def cost(self) -> SearchCost:
        """How often `search` evaluates its probes; the plan prints it and a test counts it."""
        return SearchCost()

    @abstractmethod
    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The constraint for these samples; radius is a float or [B]."""

    def budget_at(self, noised: Noised, probe: Probe, rng: Draws) -> Budget:
        """The constraint where it depends on a network; what the core asks for.

        By default it is `budget`. Override it to read a query that `needs` lists from `probe.step`,
        for example the radius that a model role predicts; values come without a graph.

        Args:
            noised: The base view.
            probe: Access to the unmoved step.
            rng: Random numbers of this view's own stream.
        """
        del probe
        return self.budget(noised, rng)

    @abstractmethod
    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Propose a perturbation [B, ...] in the budget's unit. It need not respect the budget.

        Args:
            noised: The base view.
            budget: What `budget` returned.
            probe: Access to the network at moved inputs.
            rng: Random numbers of this view's own stream.
        """

    def update(self, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        """Next delta [B, ...] of a free perturbation after a training backward.

        Args:
            delta: Current delta, in the budget's unit.
            gradient: Gradient of the player's total loss with respect to delta; its scale depends
                on weights and batch size, so use its direction only.
            budget: The constraint; the core projects the result onto it.
        """
        del delta, gradient, budget
        message = f"{type(self).__name__} does not learn from the training backward"
        raise ContractError(message, where=self.build.path, fix="use passes = 1")

    @final
    def perturb(self, noised: Noised, probe: Probe, rng: Draws, domain: Domain | None) -> Noised:
        """Search, project and apply. `domain` clips image views and scales pixel budgets."""
        budget = self.budget_at(noised, probe, rng)
        if budget.unit != self.unit:
            message = (
                f"budget in {budget.unit!r} units, but delta is declared in {self.unit!r} units"
            )
            raise ContractError(
                message, where=self.build.path, fix="set `unit` to the budget's unit"
            )
        radius = torch.as_tensor(budget.radius, dtype=_precise(noised), device=noised.x_t.device)
        radius = radius.expand(noised.x_t.shape[0]) if radius.dim() == 0 else radius
        # A search may hand back its leaf; to the training gradient delta is a constant.
        proposed = self.search(noised, budget, probe, rng).detach()
        if proposed.shape != noised.x_t.shape:
            message = (
                f"search returned shape {list(proposed.shape)}, wanted {list(noised.x_t.shape)}"
            )
            raise ContractError(message, where=self.build.path, fix="return one delta per sample")
        return self.apply(noised, proposed, budget._replace(radius=radius), domain)

    @final
    def apply(self, noised: Noised, delta: Tensor, budget: Budget, domain: Domain | None) -> Noised:
        """Project `delta` onto `budget` and move `noised` by it; radius must be [B]."""
        radius = budget.radius
        assert isinstance(radius, Tensor)
        # Straight through: a free delta on the boundary keeps its whole gradient.
        inside = delta.to(_precise(noised))
        inside = inside + (norms.project(inside, norm=budget.norm, radius=radius) - inside).detach()
        shift = inside * scale_of(budget, noised, domain)
        x_t = noised.x_t + shift.to(noised.x_t.dtype)
        if noised.t is None and domain is not None:
            x_t = x_t.clamp(domain.low, domain.high)
        eps = self.target(noised, inside, shift)
        moved = expand(radius > 0, noised.x_t)
        x_t = torch.where(moved, x_t, noised.x_t)
        eps = None if eps is None or noised.eps is None else torch.where(moved, eps, noised.eps)
        return noised._replace(x_t=x_t, eps=eps, delta=shift, radius=radius)

    @final
    def target(self, noised: Noised, delta: Tensor, shift: Tensor) -> Tensor | None:
        """Noise [B, ...] that is the target once `noised` moved: `eps + shift / sigma`, or eps.

        Args:
            noised: The base view; None is returned for a view of images.
            delta: Perturbation [B, ...] in this unit.
            shift: The same in units of `x_t` [B, ...].
        """
        if noised.eps is None or not self.follows:
            return noised.eps
        assert noised.sigma is not None
        moved = delta if self.unit == "noise" else shift / noised.sigma
        return noised.eps + (moved if self.target_gradient else moved.detach())


def _precise(noised: Noised) -> torch.dtype:
    return torch.promote_types(noised.x_t.dtype, torch.float32)


def scale_of(budget: Budget, noised: Noised, domain: Domain | None) -> Tensor | float:
    """Factor from the budget's unit to units of `x_t`: 1, sigma(t) [B, 1, ...] or the span."""
    if budget.unit == "noise":
        if noised.sigma is None:
            message = "a budget in noise units on an image view, which has no noise"
            raise ContractError(message, fix='use unit = "pixel" or "image"')
        return noised.sigma
    if budget.unit == "pixel":
        return domain.span if domain is not None else 1.0
    return 1.0
