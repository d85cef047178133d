"""Small searches of the core's own, to hold the attacks of an evaluation against.

They need no plugin and know no settings: signed steps, noise and queries on a fixed few samples.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.engine.robust.evidence import Evidence
from advdiff_core.engine.robust.soundness_model import Inspected, Loss, margin
from advdiff_core.math import norms
from advdiff_core.types import Budget, Domain, expand

__all__ = ["Searches"]


@frozen(kw_only=True, eq=False)
class Searches:
    """Searches for misclassified inputs around `x`; each returns which samples it broke [B], bool.

    Attributes:
        model: The classifier.
        x: Clean inputs [B, ...].
        y: Their labels [B].
        budget: Norm and radius, in units of `x`.
        domain: Valid range of inputs, or None.
    """

    model: Inspected
    x: Tensor
    y: Tensor
    budget: Budget
    domain: Domain | None

    @classmethod
    def of(cls, model: Inspected, evidence: Evidence) -> Searches:
        """Searches on the samples of the evidence."""
        return cls(
            model=model, x=evidence.x, y=evidence.y, budget=evidence.budget,
            domain=evidence.domain,
        )  # fmt: skip

    def climb(self, loss: Loss, *, steps: int) -> Tensor:
        """Projected steps along the gradient's steepest direction (Madry et al. 2018).

        From a random point, with steps of 2.5 radii over their number; one step alone starts from
        `x` and is as long as the radius (Goodfellow et al. 2015). Every iterate counts.

        Args:
            loss: Of logits [B, K] and labels, per sample [B].
            steps: Number of steps.
        """
        single = steps == 1
        length = self._radius() * (1.0 if single else 2.5 / steps)
        delta = torch.zeros_like(self.x) if single else self._random()
        broken = torch.zeros(len(self.x), dtype=torch.bool)
        for _ in range(steps):
            moved = self._valid(delta)
            logits, gradient = self.model.gradient(moved, self.y, loss)
            broken |= self._wrong(logits)
            gradient = torch.zeros_like(moved) if gradient is None else gradient.nan_to_num()
            ascent = norms.steepest_ascent(gradient, self.budget.norm)
            delta = moved - self.x + expand(length, self.x) * ascent
        return broken | self._wrong(self.model.logits(self._valid(delta)))

    def noise(self, count: int) -> Tensor:
        """Random points: half of them anywhere in the ball, half at its rim."""
        broken = torch.zeros(len(self.x), dtype=torch.bool)
        draws = self._draws("noise")
        radius = expand(self._radius(), self.x)
        for number in range(count):
            if number % 2:
                way = draws.normal(tuple(self.x.shape)).to(self.x)
                delta = radius * norms.steepest_ascent(way, self.budget.norm)
            else:
                delta = self._random(draws)
            broken |= self._wrong(self.model.logits(self._valid(delta)))
        return broken

    def queries(self, count: int) -> Tensor:
        """Random search on the margin over windows (as in Andriushchenko et al. 2020).

        Windows shrink from most of the input to a few pixels, and each of their channels moves to
        one side; a move that raises the margin stays.

        Args:
            count: Forwards per sample.
        """
        draws = self._draws("queries")
        delta = self._valid(self._window(draws, 1.0)) - self.x
        logits = self.model.logits(self.x + delta)
        best, broken = margin(logits, self.y), self._wrong(logits)
        for number in range(count - 1):
            share = 0.8 * 0.5 ** (6 * number / count)
            tried = self._valid(delta + 2 * self._window(draws, share))
            logits = self.model.logits(tried)
            height = margin(logits, self.y)
            better = expand(height > best, self.x)
            delta, best = torch.where(better, tried - self.x, delta), torch.maximum(best, height)
            broken |= self._wrong(logits)
        return broken

    def _window(self, draws: Draws, share: float) -> Tensor:
        """Steps of one radius in a random window that holds `share` of the input [B, ...]."""
        shape = (len(self.x), self.x.shape[1], *([1] * (self.x.dim() - 2)))
        sign = draws.integers(shape, 0, 2).to(self.x) * 2 - 1
        mask = torch.ones_like(self.x)
        sides = range(2, self.x.dim()) if self.x.dim() > 2 else range(1, 2)
        for side in sides:
            mask = mask * self._band(draws, side, share ** (1 / len(sides)))
        delta = sign * mask
        return (
            expand(self._radius() / norms.norm(delta, self.budget.norm).clamp_min(1e-12), delta)
            * delta
        )

    def _band(self, draws: Draws, side: int, share: float) -> Tensor:
        size = self.x.shape[side]
        width = max(round(size * share), 1)
        start = draws.integers((len(self.x), 1), 0, size - width + 1).to(self.x.device)
        place = torch.arange(size, device=self.x.device)
        inside = (place >= start) & (place < start + width)
        shape = [len(self.x), *([1] * (self.x.dim() - 1))]
        shape[side] = size
        return inside.reshape(shape).to(self.x)

    def _random(self, draws: Draws | None = None) -> Tensor:
        delta = norms.uniform_in_ball(
            tuple(self.x.shape), norm=self.budget.norm, radius=self._radius(),
            draws=draws or self._draws("start"),
        )  # fmt: skip
        return delta.to(self.x)

    def _draws(self, name: str) -> Draws:
        count = len(self.x)
        key = ("soundness", name)
        return Draws(key, start=0, size=count, total=count, device=self.x.device)

    def _radius(self) -> Tensor:
        radius = torch.as_tensor(self.budget.radius, dtype=self.x.dtype, device=self.x.device)
        return radius.expand(len(self.x))

    def _valid(self, delta: Tensor) -> Tensor:
        moved = self.x + norms.project(delta, norm=self.budget.norm, radius=self._radius())
        if self.domain is not None:
            moved = moved.clamp(self.domain.low, self.domain.high)
        return moved.detach()

    def _wrong(self, logits: Tensor) -> Tensor:
        """Misclassified, or not finite [B], on the CPU."""
        lost = ~logits.isfinite().all(1)
        return ((logits.argmax(1) != self.y) | lost).cpu()
