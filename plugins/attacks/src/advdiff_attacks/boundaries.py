"""What attacks that look for the nearest decision boundary share: verdicts, and the best so far."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core import Budget, Victim, expand
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms
from advdiff_core.types import Domain, Norm

__all__ = ["Nearest", "climb", "clip", "is_broken", "rivals"]


class Nearest:
    """The nearest broken point found so far of each sample.

    Args:
        x: Clean inputs [B, ...].
        norm: What nearness is measured in.
        broken: Samples that are broken as they are [B].
        enough: Distance at which a sample is settled [B], and nearer points are not taken any more;
            zero to take them to the end, infinity to take the first.

    Attributes:
        points: Nearest broken points [B, ...]; the clean inputs where there is none.
        lengths: Their distances [B]; infinite where there is none, zero where broken from the
            start.
    """

    def __init__(self, x: Tensor, norm: Norm, broken: Tensor, enough: Tensor | float = 0.0) -> None:
        self.x, self.norm = x, norm
        self.points = x.clone()
        self.lengths = torch.where(broken, 0.0, torch.inf).to(x.dtype)
        self._enough = torch.as_tensor(enough).to(self.lengths).expand(len(x))

    def offer(self, rows: Tensor, points: Tensor, broken: Tensor) -> None:
        """Keep those of `points` [N, ...] of samples `rows` [N] that are broken [N] and nearer.

        A settled sample keeps what it has: it makes no difference whether it was taken out.
        """
        lengths, before = norms.norm(points - self.x[rows], self.norm), self.lengths[rows]
        better = broken & self._open(rows) & (lengths < before)
        self.lengths[rows] = torch.where(better, lengths, before)
        kept = expand(better, points)
        self.points[rows] = torch.where(kept, points, self.points[rows])

    def open(self, rows: Tensor) -> Tensor:
        """Places in `rows` [N] of samples that are not settled."""
        return self._open(rows).nonzero()[:, 0]

    def _open(self, rows: Tensor) -> Tensor:
        lengths = self.lengths[rows]
        return (lengths > self._enough[rows]) | lengths.isinf()

    def within(self, budget: Budget) -> Tensor:
        """The points [B, ...] that are inside the budget, and clean inputs for the others."""
        # Where nothing was found the points are the clean inputs, under an infinite radius, too.
        inside = self.lengths <= torch.as_tensor(budget.radius).to(self.lengths)
        return torch.where(expand(inside, self.x), self.points, self.x)


def is_broken(victim: Victim, outputs: Tensor) -> Tensor:
    """The victim's own verdict [B] on `outputs` [B, K], else whether the largest logit is wrong."""
    verdict = victim.broken(outputs)
    if verdict is not None:
        return verdict
    assert victim.labels is not None, "a boundary needs a verdict or labels"
    return outputs.argmax(dim=1).ne(victim.labels)


def rivals(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The `count` other classes of largest logit [B, count], at most all; largest first."""
    count = min(count, logits.shape[1] - 1)
    own = torch.full_like(logits[:, :1], -torch.inf)
    return logits.scatter(1, y[:, None], own).topk(count, dim=1).indices


def clip(x: Tensor, domain: Domain | None) -> Tensor:
    """`x` [B, ...] inside the domain, if there is one."""
    return x if domain is None else x.clamp(domain.low, domain.high)


def climb(victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, steps: int) -> Tensor:
    """Steepest ascent [B, ...] of a loss that has no boundary (a victim without labels).

    What an attack does that looks for the smallest perturbation where "broken" has no meaning:
    `steps` steps of 2.5 radii together, and the point of largest loss. Samples with an infinite
    radius stay.
    """
    radius = torch.as_tensor(budget.radius).to(x)
    radius = torch.where(radius.isfinite(), radius, 0.0).expand(x.shape[0])
    size = expand(2.5 * radius / steps, x)
    at, best, top = x, x, torch.full_like(radius, -torch.inf)
    for step in range(steps + 1):
        at = at.detach().requires_grad_(step < steps)
        loss = victim.loss(victim.outputs(at))
        better = loss.detach() > top
        top = torch.where(better, loss.detach(), top)
        best = torch.where(expand(better, x), at.detach(), best)
        if step == steps:
            break
        moved = at.detach() + size * norms.steepest_ascent(
            input_gradient(loss, at), budget.norm
        ) - x  # fmt: skip
        at = clip(x + norms.project(moved, norm=budget.norm, radius=radius), domain)
    return best
