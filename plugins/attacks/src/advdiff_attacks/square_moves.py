"""Starts and windows of Square in each norm; images are changed in place."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
import torch
from torch import Tensor

from advdiff_attacks.boxed_l1 import project_boxed_l1
from advdiff_attacks.square_plan import Windows, bumps
from advdiff_core import Draws, expand
from advdiff_core.math import norms
from advdiff_core.types import Domain, Norm

__all__ = ["Move", "State", "move_of"]

#: Squares of the first pattern along the shorter side (Andriushchenko et al. 2020, section 4.2).
GRID = 5


@attrs.frozen(eq=False)
class State:
    """What Square knows of each sample; all have the sample axis first.

    Attributes:
        x: Clean images [N, C, H, W].
        radius: Radius of the ball [N].
        point: The best points so far.
        best: The loss there [N].
        broken: Whether a point broke the sample [N], bool.
        low: Linf: least values [N, C, H, W] inside ball and domain; empty in other norms.
        high: Linf: largest such values.
        signs: L2, L1: sign of each channel at each query [N, Q, C], bool; else empty.
    """

    x: Tensor
    radius: Tensor
    point: Tensor
    best: Tensor
    broken: Tensor
    low: Tensor
    high: Tensor
    signs: Tensor

    def rows(self, chosen: Tensor | slice) -> State:
        """Some samples: views for a slice, copies for places [M]."""
        return State(*(getattr(self, field.name)[chosen] for field in attrs.fields(State)))

    def put(self, rows: Tensor, part: State) -> None:
        """Overwrite what was found for the samples `rows` [M]."""
        if part.point.data_ptr() == self.point.data_ptr():
            return
        for name in ("point", "best", "broken"):
            getattr(self, name)[rows] = getattr(part, name)


class Move(ABC):
    """How Square moves in one norm.

    Args:
        plan: The windows of all queries.
        domain: Range of valid inputs, or None.
    """

    def __init__(self, plan: Windows, domain: Domain | None) -> None:
        self.plan, self.domain = plan, domain

    @abstractmethod
    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> State:
        """First points for images `x` [N, C, H, W] and radii [N]."""

    @abstractmethod
    def propose(self, state: State, query: int) -> Tensor:
        """Change the points in place; returns what has to be kept to change them back."""

    @abstractmethod
    def settle(self, state: State, query: int, kept: Tensor, better: Tensor) -> None:
        """Change the points back but for the samples that are `better` [N] off."""

    def clamp(self, point: Tensor) -> Tensor:
        """`point` [N, ...] in the domain."""
        if self.domain is None:
            return point
        return point.clamp(self.domain.low, self.domain.high)

    def state(self, x: Tensor, radius: Tensor, point: Tensor, signs: Tensor | None = None) -> State:
        """The state at the first points [N, C, H, W]."""
        empty = x[:, :0]
        return State(
            x=x, radius=radius, point=point.contiguous(),
            best=torch.full_like(radius, -torch.inf),
            broken=torch.zeros_like(radius, dtype=torch.bool),
            low=empty, high=empty, signs=empty if signs is None else signs,
        )  # fmt: skip


class _Corners(Move):
    """Linf: every pixel at one end of its range (Andriushchenko et al. 2020, algorithm 2)."""

    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> State:
        """Vertical stripes."""
        stripes = draws.uniform((x.shape[0], x.shape[1], 1, x.shape[3]), -1.0, 1.0)
        reach = expand(radius, x)
        low, high = self.clamp(x - reach), self.clamp(x + reach)
        point = torch.where(stripes.to(x.device) > 0, high, low)
        return attrs.evolve(self.state(x, radius, point), low=low, high=high)

    def propose(self, state: State, query: int) -> Tensor:
        """Move one window to its upper or lower ends, by channel."""
        rows, columns = self._slices(query)
        window = state.point[:, :, rows, columns]
        kept = window.clone()
        high, low = state.high[:, :, rows, columns], state.low[:, :, rows, columns]
        torch.where(self.plan.signs[query], high, low, out=window)
        return kept

    def settle(self, state: State, query: int, kept: Tensor, better: Tensor) -> None:
        """See `Move.settle`."""
        rows, columns = self._slices(query)
        window = state.point[:, :, rows, columns]
        torch.where(expand(better, window), window, kept, out=window)

    def _slices(self, query: int) -> tuple[slice, slice]:
        (top, left), (height, width) = self.plan.places[query], self.plan.sizes[query]
        return slice(top, top + height), slice(left, left + width)


class _Bumps(Move):
    """L2 and L1: mass moves from one window to another (ibid., algorithm 3).

    Attributes:
        power: How fast bumps fall off.
    """

    power: int

    def start(self, x: Tensor, radius: Tensor, draws: Draws) -> State:
        """A grid of bumps, each of a random sign by channel."""
        count, channels, height, width = x.shape
        side = max(min(height, width) // GRID, 1)
        down, across = height // side, width // side
        signs = draws.uniform((count, channels, down * across), -1.0, 1.0).sign().to(x)
        bump = bumps(side, side, self.power).to(x)
        grid = signs.reshape(count, channels, down, 1, across, 1) * bump[:, None]
        delta = torch.zeros_like(x)
        top, left = (height - side * down) // 2, (width - side * across) // 2
        delta[:, :, top : top + side * down, left : left + side * across] = grid.reshape(
            count, channels, side * down, side * across
        )
        drawn = draws.uniform((count, len(self.plan.sizes), channels)) > 0.5
        return self.state(x, radius, self.finish(x, delta, radius), drawn.to(x.device))

    def propose(self, state: State, query: int) -> Tensor:
        """Give the mass of a second window to the first, with a bump of a new shape there."""
        kept = state.point.clone()
        delta = state.point - state.x
        first, second = self._windows(query)
        held = self._length(delta, (1, 2, 3))
        masses = self._mass_of_union(delta, first, second)
        here = delta[(..., *first)]
        old = here / (1e-12 + self._length(here, (2, 3)))
        new = old + self._bump(query, state.x) * self._signs(state, query)
        new = new / (1e-12 + self._length(new, (2, 3)))
        new = new * self._size(expand(state.radius, held), held, masses, state.x.shape[1])
        delta[(..., *second)] = 0
        delta[(..., *first)] = new
        state.point.copy_(self.finish(state.x, delta, state.radius))
        return kept

    def settle(self, state: State, query: int, kept: Tensor, better: Tensor) -> None:
        """See `Move.settle`."""
        del query
        torch.where(expand(better, kept), state.point, kept, out=state.point)

    @abstractmethod
    def finish(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """The points of `delta` [N, C, H, W] in ball and domain."""

    @abstractmethod
    def _length(self, values: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Norm over `axes`, which are kept."""

    @abstractmethod
    def _size(self, radius: Tensor, held: Tensor, masses: Tensor, channels: int) -> Tensor:
        """Length of the new bump by channel: that of both windows, and what the ball has left."""

    def _mass_of_union(
        self, delta: Tensor, first: tuple[slice, slice], second: tuple[slice, slice]
    ) -> Tensor:
        mask = torch.zeros(delta.shape[2:], dtype=delta.dtype, device=delta.device)
        mask[first] = 1
        mask[second] = 1
        return self._length(delta * mask, (2, 3))

    def _bump(self, query: int, like: Tensor) -> Tensor:
        rows, columns = self.plan.sizes[query]
        if self.plan.turned[query]:
            return bumps(columns, rows, self.power).T.to(like)
        return bumps(rows, columns, self.power).to(like)

    def _signs(self, state: State, query: int) -> Tensor:
        up = state.signs[:, query, :, None, None]
        return up.to(state.x.dtype).mul_(2).sub_(1)

    def _windows(self, query: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        height, width = self.plan.sizes[query]
        first, second = (
            (slice(top, top + height), slice(left, left + width))
            for top, left in (self.plan.places[query], self.plan.seconds[query])
        )
        return first, second


class _L2Bumps(_Bumps):
    """Points on the sphere."""

    power = 2

    def finish(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """The points of `delta` stretched to the radius, in the domain."""
        return self.clamp(x + norms.steepest_ascent(delta, "l2") * expand(radius, x))

    def _length(self, values: Tensor, axes: tuple[int, ...]) -> Tensor:
        return values.square().sum(axes, keepdim=True).sqrt()

    def _size(self, radius: Tensor, held: Tensor, masses: Tensor, channels: int) -> Tensor:
        left = (radius.square() - held.square()).clamp_min(0)
        return (left / channels + masses.square()).sqrt()


class _L1Bumps(_Bumps):
    """As AutoAttack has it: bumps that fall off faster, and the exact projection."""

    power = 4

    def finish(self, x: Tensor, delta: Tensor, radius: Tensor) -> Tensor:
        """The points of `delta` in ball and domain."""
        return self.clamp(x + project_boxed_l1(x, delta, radius * (1 - 1e-6), self.domain))

    def _length(self, values: Tensor, axes: tuple[int, ...]) -> Tensor:
        return values.abs().sum(axes, keepdim=True)

    def _size(self, radius: Tensor, held: Tensor, masses: Tensor, channels: int) -> Tensor:
        return ((radius - held).clamp_min(0) / channels + masses) * channels


_MOVES: dict[str, type[Move]] = {"linf": _Corners, "l2": _L2Bumps, "l1": _L1Bumps}


def move_of(norm: Norm, plan: Windows, domain: Domain | None) -> Move:
    """The windows of a norm."""
    return _MOVES[norm](plan, domain)
