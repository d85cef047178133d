"""DeepFool: straight to the nearest linear boundary, until the class changes."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from advdiff_attacks.boundaries import Nearest, climb, clip, is_broken, rivals
from advdiff_attacks.linear_models import DUAL, Linear, nearest_of_all
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim, expand
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain, Norm

__all__ = ["DeepFool"]

#: Added to each distance by the authors' code, in units of the domain's span.
NUDGE = 1e-4


class DeepFool(Attack):
    """The nearest boundary by its linearisation, again and again (Moosavi-Dezfooli et al. 2016).

    Quick, and an upper bound: it stops at the first point of another class and keeps no distance
    to the clean input in view; `fab` finds nearer ones. A victim without labels has no boundary:
    its loss is climbed within the radius instead.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2", "linf")
    minimal_norm = True

    @settings
    class Settings:
        """Keys of `use = "deepfool"`."""

        steps: int = setting(50, ge=1, help="linearisations of the boundary at most")
        candidates: int = setting(
            9, ge=1, help="other classes looked at, those of largest logit; each costs a gradient"
        )
        overshoot: float = setting(0.02, ge=0, help="share by which the displacement is lengthened")

    settings: Any

    def cost(self) -> SearchCost:
        """A forward and one gradient per candidate in each step, the clean and the last forward."""
        steps = self.settings.steps
        return SearchCost(steps + 2, self.settings.candidates * steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        del rng
        if victim.labels is None:
            return climb(victim, x, budget, domain, self.settings.steps)
        with torch.no_grad():
            clean = victim.outputs(x)
        nearest = Nearest(x, budget.norm, is_broken(victim, clean), torch.inf)
        every = torch.arange(len(x), device=x.device)
        classes = rivals(clean, victim.labels, self.settings.candidates)
        way = _Way(victim, every, classes, x, x, torch.zeros_like(x))
        for _ in range(self.settings.steps):
            way = way.only(nearest.open(way.rows))
            if not len(way.rows):
                break
            model = nearest_of_all(way.victim, way.x1, way.classes, budget.norm)
            nearest.offer(way.rows, way.x1, is_broken(way.victim, model.outputs))
            self._step(way, model, budget.norm, domain)
        if len(way.rows):
            with torch.no_grad():
                broken = is_broken(way.victim, way.victim.outputs(way.x1))
            nearest.offer(way.rows, way.x1, broken)
        return nearest.within(budget)

    def _step(self, way: _Way, model: Linear, norm: Norm, domain: Domain | None) -> None:
        """Onto the linear boundary and a little beyond (Moosavi-Dezfooli et al. 2016, eq. 8-12)."""
        length = norms.norm(model.gradient, DUAL[norm]).clamp_min(1e-12)
        span = 1.0 if domain is None else domain.span
        distance = model.value.abs() / length + NUDGE * span
        direction = norms.steepest_ascent(model.gradient, norm)
        way.moved = way.moved + expand(distance, way.x0) * direction
        way.x1 = clip(way.x0 + (1 + self.settings.overshoot) * way.moved, domain)


@attrs.define
class _Way:
    """Samples under way: `rows` [N] of the batch, where they are, and the sum of their steps."""

    victim: Victim
    rows: Tensor
    classes: Tensor
    x0: Tensor
    x1: Tensor
    moved: Tensor

    def only(self, kept: Tensor) -> _Way:
        """Some of the samples, `kept` [M]; all if they cannot be taken apart and any is left."""
        if len(kept) == len(self.rows):
            return self
        victim = self.victim.rows(kept) if len(kept) else self.victim
        if victim is None:
            return self
        return _Way(
            victim, self.rows[kept], self.classes[kept], self.x0[kept], self.x1[kept],
            self.moved[kept],
        )  # fmt: skip
