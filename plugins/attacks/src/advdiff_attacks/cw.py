"""Carlini and Wagner's attack: distance and margin minimised together, their balance searched."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from advdiff_attacks.boundaries import Nearest, climb, is_broken
from advdiff_attacks.objectives import margin
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain, Norm

__all__ = ["CW"]

#: Keeps inputs at the domain's ends within reach of tanh.
INSIDE = 0.999999

#: Decay of Adam's means, and what keeps its step finite (Kingma and Ba 2015).
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


class CW(Attack):
    """Least squared distance plus c times the missing margin, by Adam (Carlini and Wagner 2017).

    c is searched per sample: ten times as much until the sample breaks, then by bisection. The
    change of variables is tanh onto the domain; distances count in units of its span, so that c
    means the same in every range. A victim without labels has no boundary: its loss is climbed
    within the radius instead.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l2",)
    minimal_norm = True

    @settings
    class Settings:
        """Keys of `use = "cw-l2"`."""

        steps: int = setting(1000, ge=1, help="steps of Adam for each c")
        searches: int = setting(9, ge=1, help="values of c that are tried")
        lr: float = setting(0.01, gt=0, help="step of Adam, in the variable under tanh")
        initial_c: float = setting(1e-3, gt=0, help="first c")
        confidence: float = setting(0.0, ge=0, help="margin that a broken point has to have")
        abort_early: bool = setting(
            True, help="a sample whose loss does not sink for a tenth of the steps is done with a c"
        )

    settings: Any

    def cost(self) -> SearchCost:
        """A forward and a gradient in each step, and the clean forward."""
        steps = self.settings.steps * self.settings.searches
        return SearchCost(steps + 1, steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        del rng
        if victim.labels is None:
            return climb(victim, x, budget, domain, min(self.settings.steps, 100))
        with torch.no_grad():
            already = is_broken(victim, victim.outputs(x))
        nearest = Nearest(x, "l2", already)
        rows = (~already).nonzero()[:, 0]
        part = victim.rows(rows) if 0 < len(rows) < len(x) else victim
        if part is None:
            rows, part = torch.arange(len(x), device=x.device), victim
        if len(rows):
            self._search_c(part, rows, nearest, _Space(domain))
        return nearest.within(budget)

    def _search_c(self, victim: Victim, rows: Tensor, nearest: Nearest, space: _Space) -> None:
        """Descend with one c after the other for the samples `rows` [N]."""
        balance = _Balance(nearest.x[rows], self.settings)
        for number in range(self.settings.searches):
            c = balance.pick(last=number == self.settings.searches - 1)
            balance.learn(self._descend(victim, rows, c, nearest, space))

    def _descend(
        self, victim: Victim, rows: Tensor, c: Tensor, nearest: Nearest, space: _Space
    ) -> Tensor:
        """Minimise with one `c` [N] each, and say which samples broke [N]."""
        x = nearest.x[rows]
        start = space.inner(x)
        zeros = torch.zeros_like(x)
        places = torch.arange(len(rows), device=x.device)
        never = torch.full_like(c, torch.inf)
        going = torch.ones_like(c, dtype=torch.bool)
        state = _Adam(victim, places, going, c, start, space.outer(start), zeros, zeros, never)
        found = torch.zeros_like(c, dtype=torch.bool)
        look = math.ceil(self.settings.steps / 10)
        for step in range(self.settings.steps):
            points, broken, loss = self._step(state, step, space)
            nearest.offer(rows[state.places], points, broken)
            found[state.places] |= broken
            if self.settings.abort_early and step % look == 0:
                sinks = loss <= 0.9999 * state.previous
                state.previous = loss
                state = state.only(sinks)
                if not bool(state.going.any()):
                    break
        return found

    def _step(self, state: _Adam, step: int, space: _Space) -> tuple[Tensor, Tensor, Tensor]:
        """One step; the points it started from [N, ...], which are broken [N], and losses [N]."""
        inner = state.inner.detach().requires_grad_()
        points = space.outer(inner)
        logits = state.victim.outputs(points)
        assert state.victim.labels is not None
        ahead = margin(logits, state.victim.labels)
        missing = (self.settings.confidence - ahead).clamp_min(0)
        apart = ((points - state.reached) / space.span).flatten(1).square().sum(1)
        loss = apart + state.c * missing
        state.descend(input_gradient(loss, inner), step, self.settings.lr)
        broken = is_broken(state.victim, logits.detach()) & state.going
        return points.detach(), broken & (ahead.detach() >= self.settings.confidence), loss.detach()


class _Space:
    """The change of variables: tanh onto the domain, or none where there is no domain."""

    def __init__(self, domain: Domain | None) -> None:
        self.domain = domain
        self.span = 1.0 if domain is None else domain.span

    def inner(self, x: Tensor) -> Tensor:
        """The variable [B, ...] of points `x` [B, ...]; the domain's ends move inwards a little."""
        if self.domain is None:
            return x
        unit = 2 * (x - self.domain.low) / self.span - 1
        return (INSIDE * unit.clamp(-1, 1)).atanh()

    def outer(self, inner: Tensor) -> Tensor:
        """The points [B, ...] of variables `inner` [B, ...]."""
        if self.domain is None:
            return inner
        return self.domain.low + self.span * (inner.tanh() + 1) / 2


class _Balance:
    """The search for each sample's c: what broke it bounds c from above, what did not from below.

    Args:
        x: Clean inputs [B, ...].
        keys: The attack's settings.
    """

    def __init__(self, x: Tensor, keys: Any) -> None:
        self.keys = keys
        self.c = torch.full_like(x.flatten(1)[:, 0], keys.initial_c)
        self.low = torch.zeros_like(self.c)
        self.high = torch.full_like(self.c, torch.inf)

    def pick(self, *, last: bool) -> Tensor:
        """The next c [B]; the last of ten or more is the smallest that broke, once more."""
        if last and self.keys.searches >= 10:
            self.c = self.high.clamp_max(1e10)
        return self.c

    def learn(self, found: Tensor) -> None:
        """Note which samples broke [B], and choose the next c."""
        self.low = torch.where(found, self.low, self.c)
        self.high = torch.where(found, self.c, self.high)
        between = (self.low + self.high) / 2
        self.c = torch.where(self.high.isinf(), 10 * self.c, between)


@attrs.define
class _Adam:
    """Samples under way with one c each, and Adam's means.

    Attributes:
        victim: What they are attacked in.
        places: Which of those that began they are [N].
        going: Whether they still are under way [N]; others could not be taken out.
        c: Weight of the missing margin [N].
        inner: The variable [N, ...].
        reached: The clean inputs as the change of variables gives them back [N, ...].
        mean: Mean of gradients [N, ...].
        square: Mean of their squares [N, ...].
        previous: Loss at the last look [N].
    """

    victim: Victim
    places: Tensor
    going: Tensor
    c: Tensor
    inner: Tensor
    reached: Tensor
    mean: Tensor
    square: Tensor
    previous: Tensor

    def descend(self, gradient: Tensor, step: int, lr: float) -> None:
        """Adam's step number `step` (Kingma and Ba 2015, algorithm 1)."""
        self.mean = BETA1 * self.mean + (1 - BETA1) * gradient
        self.square = BETA2 * self.square + (1 - BETA2) * gradient.square()
        mean = self.mean / (1 - BETA1 ** (step + 1))
        square = self.square / (1 - BETA2 ** (step + 1))
        self.inner = self.inner.detach() - lr * mean / (square.sqrt() + EPS)

    def only(self, going: Tensor) -> _Adam:
        """Go on with those of `going` [N]; others leave, or stand still if they cannot."""
        self.going = self.going & going
        kept = self.going.nonzero()[:, 0]
        if len(kept) == len(self.places):
            return self
        victim = self.victim.rows(kept) if len(kept) else self.victim
        if victim is None:
            return self
        names = ("places", "going", "c", "inner", "reached", "mean", "square", "previous")
        return _Adam(victim, *(getattr(self, name)[kept] for name in names))
