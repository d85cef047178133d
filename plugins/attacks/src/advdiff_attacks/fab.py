"""FAB: the nearest decision boundary by projections onto its linearisation."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from advdiff_attacks.boundaries import Nearest, climb, clip, is_broken, rivals
from advdiff_attacks.fab_projections import displacement
from advdiff_attacks.linear_models import Linearise, nearest_of_all, towards
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim, expand
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["FAB", "FABT"]

STEPS = "linearisations of the boundary; each costs two forwards and its gradients"
RESTARTS = "searches; all but the first begin at a random point"
ALPHA = "largest share of the clean input's own projection in a step"
OVERSHOOT = "factor on displacements, to land beyond the boundary"
BACKWARD = "a broken point is drawn back to this share of its distance"
SETTLE = "stop a sample once it is broken within the radius: the verdict is the same, sooner"

#: Radius of random starts where neither the budget nor a broken point gives one, in units of the
#: domain's span; the thresholds of the reference implementation.
START = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


class FAB(Attack):
    """The nearest decision boundary, whichever class is beyond it (Croce and Hein 2020).

    Each step linearises the boundaries to `candidates` other classes, takes the nearest of them and
    projects onto it, biased towards the clean input. One search gives the smallest perturbation
    found, whatever the radius. A victim without labels has no boundary: its loss is climbed within
    the radius instead.
    """

    minimal_norm = True

    @settings
    class Settings:
        """Keys of `use = "fab"`."""

        steps: int = setting(100, ge=1, help=STEPS)
        restarts: int = setting(1, ge=1, help=RESTARTS)
        candidates: int = setting(
            9, ge=1, help="other classes looked at, those of largest logit; each costs a gradient"
        )
        alpha_max: float = setting(0.1, ge=0, le=1, help=ALPHA)
        overshoot: float = setting(1.05, ge=1, help=OVERSHOOT)
        backward: float = setting(0.9, gt=0, lt=1, help=BACKWARD)
        settle: bool = setting(False, help=SETTLE)

    settings: Any

    def cost(self) -> SearchCost:
        """Two forwards and one gradient per candidate in each step, and the clean forward."""
        steps = self.settings.steps * self.settings.restarts
        return SearchCost(2 * steps + 1, self.settings.candidates * steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        if victim.labels is None:
            return climb(victim, x, budget, domain, self.settings.steps)
        search = _Search(victim, x, budget, domain, self.settings)
        classes = rivals(search.clean, victim.labels, self.settings.candidates)
        search.run(classes, nearest_of_all, rng.child("fab"))
        return search.nearest.within(budget)


class FABT(Attack):
    """The nearest decision boundary to each of the likeliest other classes (Croce and Hein 2020).

    The targeted version of AutoAttack: one search per target class, of one gradient a step however
    many classes there are. A victim without labels has no boundary: its loss is climbed within the
    radius instead.
    """

    minimal_norm = True

    @settings
    class Settings:
        """Keys of `use = "fab-t"`."""

        steps: int = setting(100, ge=1, help=STEPS)
        restarts: int = setting(1, ge=1, help=RESTARTS)
        targets: int = setting(
            9, ge=1, help="other classes that are searched for, those of largest logit first"
        )
        alpha_max: float = setting(0.1, ge=0, le=1, help=ALPHA)
        overshoot: float = setting(1.05, ge=1, help=OVERSHOOT)
        backward: float = setting(0.9, gt=0, lt=1, help=BACKWARD)
        settle: bool = setting(False, help=SETTLE)

    settings: Any

    def cost(self) -> SearchCost:
        """Two forwards and one gradient in each step towards a target, and the clean forward."""
        steps = self.settings.steps * self.settings.restarts * self.settings.targets
        return SearchCost(2 * steps + 1, steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        if victim.labels is None:
            return climb(victim, x, budget, domain, self.settings.steps)
        search = _Search(victim, x, budget, domain, self.settings)
        classes = rivals(search.clean, victim.labels, self.settings.targets)
        for number in range(classes.shape[1]):
            target = classes[:, number : number + 1]
            search.run(target, towards, rng.child("fab-t", number))
        return search.nearest.within(budget)


@attrs.define
class _Front:
    """The samples that are searched together: `rows` [N] of the batch, and where they are.

    Once made it is cut to fewer samples only: settled ones leave.
    """

    victim: Victim
    rows: Tensor
    classes: Tensor
    x0: Tensor
    x1: Tensor

    def only(self, kept: Tensor) -> _Front:
        """The front of some of its samples, `kept` [M]; itself if they cannot be taken apart."""
        if len(kept) == len(self.rows):
            return self
        # Where nobody is left no victim is needed: one that cannot be taken apart stops as well.
        victim = self.victim.rows(kept) if len(kept) else self.victim
        if victim is None:
            return self
        return _Front(victim, self.rows[kept], self.classes[kept], self.x0[kept], self.x1[kept])


class _Search:
    """The nearest broken points of a batch, and the descents that look for them.

    Attributes:
        clean: Outputs at the clean inputs [B, K].
        nearest: What was found so far.
    """

    def __init__(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, keys: Any
    ) -> None:
        self.victim, self.x, self.budget, self.domain, self.keys = victim, x, budget, domain, keys
        with torch.no_grad():
            self.clean = victim.outputs(x)
        enough = budget.radius if keys.settle else 0.0
        self.nearest = Nearest(x, budget.norm, is_broken(victim, self.clean), enough)

    def run(self, classes: Tensor, linearise: Linearise, rng: Draws) -> None:
        """Search all restarts with the rivals `classes` [B, C]."""
        for restart in range(self.keys.restarts):
            front = self._front(classes)
            if restart and len(front.rows):
                front.x1 = self._random_start(front, rng.child(restart).rows(front.rows))
            for step in range(self.keys.steps):
                if step and self._looks(step):
                    front = front.only(self.nearest.open(front.rows))
                if not len(front.rows):
                    break
                self._step(front, linearise)

    def _front(self, classes: Tensor) -> _Front:
        """All samples that are not settled yet."""
        every = torch.arange(len(self.x), device=self.x.device)
        front = _Front(self.victim, every, classes, self.x, self.x.clone())
        return front.only(self.nearest.open(every))

    def _looks(self, step: int) -> bool:
        """Whether it is time to drop settled samples; to look costs a wait for a GPU."""
        return bool(self.keys.settle) and (self.x.device.type == "cpu" or step % 10 == 0)

    def _step(self, front: _Front, linearise: Linearise) -> None:
        """Project onto the linear boundary, note who is broken, and draw these back."""
        norm = self.budget.norm
        model = linearise(front.victim, front.x1, front.classes, norm)
        front.x1 = self._towards_boundary(front, model.value, model.gradient)
        with torch.no_grad():
            broken = is_broken(front.victim, front.victim.outputs(front.x1))
        self.nearest.offer(front.rows, front.x1, broken)
        back = front.x0 + self.keys.backward * (front.x1 - front.x0)
        front.x1 = torch.where(expand(broken, back), back, front.x1)

    def _towards_boundary(self, front: _Front, value: Tensor, gradient: Tensor) -> Tensor:
        """The biased step [N, ...] (Croce and Hein 2020, eq. 8 and 9)."""
        x0, x1, norm = front.x0, front.x1, self.budget.norm
        w = gradient.flatten(1)
        # The same hyperplane seen from the clean input, without the cancellation of w . x - b.
        there = value + (w * (x0 - x1).flatten(1)).sum(1)
        moves = displacement(
            torch.cat([x1, x0]).flatten(1), torch.cat([w, w]), torch.cat([value, there]),
            norm=norm, domain=self.domain,
        )  # fmt: skip
        near, far = norms.norm(moves, norm).clamp_min(1e-8).chunk(2)
        alpha = expand((near / (near + far)).clamp_max(self.keys.alpha_max), x1)
        d1, d2 = (self.keys.overshoot * move.reshape(x1.shape) for move in moves.chunk(2))
        return clip((1 - alpha) * (x1 + d1) + alpha * (x0 + d2), self.domain)

    def _random_start(self, front: _Front, rng: Draws) -> Tensor:
        """Points [N, ...] at half the distance that is to be undercut."""
        norm, x0 = self.budget.norm, front.x0
        drawn = rng.uniform(x0.shape, -1, 1) if norm == "linf" else rng.normal(x0.shape)
        direction = drawn.to(x0)
        span = 1.0 if self.domain is None else self.domain.span
        limit = torch.as_tensor(self.budget.radius).to(x0).expand(len(self.x))[front.rows]
        limit = torch.minimum(limit, self.nearest.lengths[front.rows])
        limit = torch.where(limit.isfinite(), limit, START[norm] * span)
        size = 0.5 * limit / norms.norm(direction, norm).clamp_min(1e-12)
        return clip(x0 + expand(size, x0) * direction, self.domain)
