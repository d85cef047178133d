"""SPSA: gradient ascent on differences of losses, for victims whose gradients tell nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from attrs import define
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.objectives import LossName, objective_of
from advdiff_attacks.starts import inside
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain, Norm

__all__ = ["SPSA"]

BETAS, TINY = (0.9, 0.999), 1e-8


@define(eq=False)
class _Running:
    """The samples that still climb.

    Attributes:
        rows: Which samples of the batch they are [N], int64.
        victim: The victim of these samples.
        x: Clean inputs [N, ...].
        at: Where they are [N, ...].
        budget: Norm, and radius [N].
        clean: Outputs at the clean inputs [N, ...].
        rng: Their random numbers.
        mean: Adam's mean of the slopes [N, ...].
        square: Adam's mean of their squares [N, ...].
    """

    rows: Tensor
    victim: Victim
    x: Tensor
    at: Tensor
    budget: Budget
    clean: Tensor
    rng: Draws
    mean: Tensor
    square: Tensor


class SPSA(Attack):
    """Adam on slopes along random signs, measured by differences (Uesato et al. 2018, section 3).

    Takes no gradient of the victim. A slope is the mean over `samples` pairs of
    `(J(x + d v) - J(x - d v)) / (2 d) v` with v of random signs; the points of a pair may lie a
    little outside the range of valid values.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")

    @settings
    class Settings:
        """Keys of `use = "spsa"`."""

        steps: int = setting(100, ge=1, le=100_000, help="steps of Adam")
        samples: int = setting(128, ge=1, le=100_000, help="pairs of points per step")
        at_once: int = setting(16, ge=1, help="pairs in one forward, where samples can be repeated")
        distance: float = setting(
            0.01, gt=0.0, help="d: half the distance of a pair, on the [0, 1] scale of the data"
        )
        lr: float = setting(0.01, gt=0.0, help="Adam's step, on the [0, 1] scale of the data")
        loss: LossName = setting("margin", help="what grows; victim: what is given to the attack")
        drop_broken: bool = setting(True, help="leave samples once they are broken")

    settings: Settings

    def objective(self, victim: Victim, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Attack.objective`."""
        return objective_of(victim, self.settings.loss, clean)

    def cost(self) -> SearchCost:
        """Two forwards per pair, one per step to judge the point, and one at the clean points."""
        return SearchCost(self.settings.steps * (2 * self.settings.samples + 1) + 1, 0)

    @torch.no_grad()
    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        clean = victim.outputs(x)
        best = Best(x, self.objective(victim, clean)(clean), victim.broken(clean))
        rows, zero = torch.arange(len(x), device=x.device), torch.zeros_like(x)
        run = _Running(rows, victim, x, x, budget, clean, rng, zero, zero)
        for step in range(1, self.settings.steps + 1):
            if self.settings.drop_broken:
                run = _left(run, best)
            if not len(run.rows):
                break
            self._step(run, step, domain)
            outputs = run.victim.outputs(run.at)
            loss = self.objective(run.victim, run.clean)(outputs)
            best.update(run.at, loss, self._verdict(run, best, outputs), run.rows)
        return best.x

    def _verdict(self, run: _Running, best: Best, outputs: Tensor) -> Tensor | None:
        """Samples beaten [N]; those that were and could not be left out are left as they are."""
        broken = run.victim.broken(outputs)
        if broken is None or not self.settings.drop_broken:
            return broken
        return broken & ~best.broken[run.rows]

    def _step(self, run: _Running, step: int, domain: Domain | None) -> None:
        """One step of Adam (Kingma and Ba 2015, algorithm 1), uphill."""
        span = domain.span if domain is not None else 1.0
        slope = self._slope(run, self.settings.distance * span)
        run.mean = run.mean.lerp(slope, 1 - BETAS[0])
        run.square = run.square.lerp(slope.square(), 1 - BETAS[1])
        mean, square = run.mean / (1 - BETAS[0] ** step), run.square / (1 - BETAS[1] ** step)
        ahead = run.at + self.settings.lr * span * mean / (square.sqrt() + TINY)
        run.at = inside(ahead, run.x, run.budget, domain)

    def _slope(self, run: _Running, distance: float) -> Tensor:
        """Estimated gradient [N, ...] of the objective."""
        total, done = torch.zeros_like(run.at), 0
        while done < self.settings.samples:
            many = min(self.settings.at_once, self.settings.samples - done)
            uniform = run.rng.uniform((len(run.at), many, *run.at.shape[1:]))
            signs = (uniform < 0.5).to(run.at.dtype) * 2 - 1
            gained = self._losses(run, signs, distance) - self._losses(run, -signs, distance)
            total += (gained.reshape(*gained.shape, *([1] * (signs.dim() - 2))) * signs).sum(1)
            done += many
        return total / (2 * distance * self.settings.samples)

    def _losses(self, run: _Running, signs: Tensor, distance: float) -> Tensor:
        """Objective [N, M] at M points of each sample, `signs` [N, M, ...] away."""
        points = run.at[:, None] + distance * signs
        rows = torch.arange(len(run.at), device=points.device).repeat_interleave(signs.shape[1])
        whole = run.victim.rows(rows)
        if whole is not None:
            outputs = whole.outputs(points.flatten(0, 1))
            return self.objective(whole, run.clean[rows])(outputs).reshape(signs.shape[:2])
        objective = self.objective(run.victim, run.clean)
        each = [objective(run.victim.outputs(at)) for at in points.unbind(1)]
        return torch.stack(each, dim=1)


def _left(run: _Running, best: Best) -> _Running:
    """The samples that are not broken, if the victim can be taken apart; else all of them."""
    alive = ~best.broken[run.rows]
    if bool(alive.all()):
        return run
    keep = alive.nonzero().squeeze(1)
    victim = run.victim.rows(keep)
    if victim is None:
        # All are settled: there is nothing left to climb for.
        return run if len(keep) else _Running(
            keep, run.victim, run.x[:0], run.at[:0], run.budget, run.clean[:0], run.rng,
            run.mean[:0], run.square[:0],
        )  # fmt: skip
    radius = torch.as_tensor(run.budget.radius)[keep]
    return _Running(
        run.rows[keep], victim, run.x[keep], run.at[keep], run.budget._replace(radius=radius),
        run.clean[keep], run.rng.rows(keep), run.mean[keep], run.square[keep],
    )  # fmt: skip
