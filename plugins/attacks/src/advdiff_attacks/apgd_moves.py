"""Starts, steps and checkpoints of auto-PGD in each norm."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from advdiff_attacks.apgd_state import State
from advdiff_attacks.boxed_l1 import project_boxed_l1
from advdiff_core import Budget, Draws, expand
from advdiff_core.math import norms
from advdiff_core.types import Domain

__all__ = ["Move", "move_of"]

#: Weight of a step against the momentum of the last one (Croce and Hein 2020, section 3.1).
ALPHA = 0.75
#: Share of coordinates that the first steps in L1 move (Croce and Hein 2021, section 3).
FIRST_SHARE = 0.2


class Move(ABC):
    """How auto-PGD moves in one norm.

    Args:
        domain: Range of valid inputs, or None.
        rho: Share of steps that must raise the loss, lest a checkpoint halve the step.
    """

    def __init__(self, domain: Domain | None, rho: float) -> None:
        self.domain, self.rho = domain, rho

    @abstractmethod
    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        """Random points near `x` [N, ...], in the domain and within `radius` [N]."""

    @abstractmethod
    def begin(self, state: State, *, resumed: bool) -> None:
        """Set steps by the radius; `resumed` where another search found the first point."""

    @abstractmethod
    def move(self, state: State, index: int) -> None:
        """Step number `index`, in place."""

    @abstractmethod
    def check(self, state: State, window: int) -> None:
        """Look back over the last `window` steps, and change step sizes and points by them."""

    @abstractmethod
    def project(self, x: Tensor, point: Tensor, radius: Tensor) -> Tensor:
        """`point` [N, ...] in the domain and within `radius` [N] of `x`."""

    def bounds(self, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Least and largest values within `radius` [N] of `x` [N, ...]; empty where no box."""
        del radius
        return x[:, :0], x[:, :0]

    def clamp(self, point: Tensor) -> Tensor:
        """`point` [N, ...] in the domain."""
        if self.domain is None:
            return point
        return point.clamp(self.domain.low, self.domain.high)


class _DenseMove(Move):
    """Steps with momentum whose size is halved (Croce and Hein 2020, algorithm 1)."""

    def begin(self, state: State, *, resumed: bool) -> None:
        """Steps of twice the radius."""
        del resumed
        state.step.copy_(2 * state.radius)
        state.checked_loss.copy_(state.best_loss)

    def move(self, state: State, index: int) -> None:
        """One step with momentum; the first has none."""
        share = ALPHA if index else 1.0
        direction = self.direction(state.gradient)
        ahead = torch.addcmul(state.point, expand(state.step, state.x), direction)
        moved = torch.lerp(state.point, self.inside(state, ahead), share)
        moved.add_(state.point, alpha=1 - share).sub_(state.old, alpha=1 - share)
        state.old.copy_(state.point)
        state.point.copy_(self.inside(state, moved))

    def check(self, state: State, window: int) -> None:
        """Halve the step and go back to the best point where `window` steps did not help."""
        no_better = ~state.halved & (state.checked_loss >= state.best_loss)
        stuck = (state.rises <= self.rho * window) | no_better
        state.put(stuck, step=state.step / 2, point=state.best, gradient=state.best_gradient)
        state.halved.copy_(stuck)
        state.checked_loss.copy_(state.best_loss)
        state.rises.zero_()

    @abstractmethod
    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along `gradient` [N, ...]."""

    @abstractmethod
    def inside(self, state: State, point: Tensor) -> Tensor:
        """`point` [N, ...], which may be overwritten, in ball and domain."""


class _LinfMove(_DenseMove):
    """Steps along signs."""

    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        """Uniform noise, stretched to the radius."""
        noise = draws.uniform(x.shape, -1.0, 1.0).to(x.dtype)
        length = expand(norms.norm(noise, "linf"), x)
        return self.clamp(x + expand(radius, x) * (noise / (length + 1e-12)))

    def bounds(self, x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """See `Move.bounds`."""
        reach = expand(radius, x)
        return self.clamp(x - reach), self.clamp(x + reach)

    def direction(self, gradient: Tensor) -> Tensor:
        """See `_DenseMove.direction`."""
        return gradient.sign()

    def inside(self, state: State, point: Tensor) -> Tensor:
        """See `_DenseMove.inside`."""
        return point.clamp_(state.low, state.high)

    def project(self, x: Tensor, point: Tensor, radius: Tensor) -> Tensor:
        """See `Move.project`."""
        return point.clamp(*self.bounds(x, radius))


class _L2Move(_DenseMove):
    """Steps along the normalised gradient."""

    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        """Gaussian noise, stretched to the radius."""
        noise = norms.steepest_ascent(draws.normal(x.shape).to(x.dtype), "l2")
        return self.clamp(x + expand(radius, x) * noise)

    def direction(self, gradient: Tensor) -> Tensor:
        """See `_DenseMove.direction`."""
        return norms.steepest_ascent(gradient, "l2")

    def inside(self, state: State, point: Tensor) -> Tensor:
        """See `_DenseMove.inside`."""
        return self.project(state.x, point, state.radius)

    def project(self, x: Tensor, point: Tensor, radius: Tensor) -> Tensor:
        """First to the ball and then to the domain, which is not the nearest point of both."""
        return self.clamp(x + norms.project(point - x, norm="l2", radius=radius))


class _SparseMove(Move):
    """L1: sparse steps and an exact projection (Croce and Hein 2021, section 3)."""

    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> Tensor:
        """Gaussian noise, projected."""
        return self.project(x, x + draws.normal(x.shape).to(x.dtype), radius)

    def begin(self, state: State, *, resumed: bool) -> None:
        """Steps of one radius; a point that was searched says how many coordinates to move."""
        state.step.copy_(state.radius)
        state.share.fill_(FIRST_SHARE)
        state.count.fill_(state.x[0].numel())
        if resumed:
            state.count.copy_(_moved(state.point, state.x))
            state.share.copy_(state.count / state.x[0].numel() / 1.5)

    def move(self, state: State, index: int) -> None:
        """One step along the signs of the largest coordinates of the gradient."""
        del index
        flat = state.gradient.flatten(1)
        size, width = flat.abs(), flat.shape[1]
        place = ((1 - state.share) * width).clamp(0, width - 1).long()
        least = size.sort(dim=1).values.gather(1, place[:, None])
        signs = flat.sign() * (size >= least)
        step = state.step[:, None] * signs / (signs.abs().sum(1, keepdim=True) + 1e-10)
        ahead = state.point + step.reshape(state.x.shape)
        state.point.copy_(self.project(state.x, ahead, state.radius))

    def check(self, state: State, window: int) -> None:
        """Long steps again where the best point got sparser, else shorter ones."""
        del window
        count = _moved(state.best, state.x).to(state.count.dtype)
        sparser = count / state.count.clamp_min(1) < 0.95
        step = torch.where(sparser, state.radius, state.step / 1.5)
        state.step.copy_(step.maximum(state.radius / 10).minimum(state.radius))
        state.share.copy_(count / state.x[0].numel() / 1.5)
        state.count.copy_(count)
        state.put(sparser, point=state.best, gradient=state.best_gradient)

    def project(self, x: Tensor, point: Tensor, radius: Tensor) -> Tensor:
        """The nearest point of ball and domain."""
        return self.clamp(x + project_boxed_l1(x, point - x, radius, self.domain))


def _moved(point: Tensor, x: Tensor) -> Tensor:
    """How many coordinates of `point` [N, ...] are not those of `x` [N]."""
    return (point != x).flatten(1).sum(1)


_MOVES: dict[str, type[_LinfMove | _L2Move | _SparseMove]] = {
    "linf": _LinfMove,
    "l2": _L2Move,
    "l1": _SparseMove,
}


def move_of(budget: Budget, domain: Domain | None, rho: float) -> Move:
    """The steps of a norm."""
    return _MOVES[budget.norm](domain, rho)
