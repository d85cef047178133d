"""The nearest point of a hyperplane inside a box, in Linf, L2 and L1, exactly and for a batch.

The step of FAB (Croce and Hein 2020, section 3.1): the smallest `d` with `w . (x + d) = b` and `low
<= x + d <= high`. Each coordinate only ever moves towards the hyperplane, so that the problem is to
fill vessels: coordinate i takes a move up to its room to the wall, and what it moves counts
`|w_i|`-fold.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.types import Domain, Norm

__all__ = ["displacement"]


def displacement(x: Tensor, w: Tensor, gap: Tensor, *, norm: Norm, domain: Domain | None) -> Tensor:
    """The smallest displacement of `x` onto a hyperplane inside the domain [N, D].

    Where the hyperplane does not meet the box, every coordinate with a say goes to its wall: the
    point of the box that comes closest. Coordinates where `w` is zero stay.

    Args:
        x: Points [N, D] inside the domain.
        w: Normals [N, D].
        gap: `w . x - b` [N]: how far the points are on the positive side, in units of `w . x`.
        norm: Which norm of the displacement is smallest.
        domain: The box; without one only the hyperplane binds.
    """
    # Only the direction of w counts, and squares of tiny gradients would vanish.
    largest = w.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    w, gap = w / scale, gap[:, None] / scale
    weight, need = w.abs(), gap.abs()
    # w . d has to be -gap.
    towards = -w.sign() * gap.sign()
    if domain is None:
        return towards * _UNBOUNDED[norm](weight, need)
    room = torch.where(towards > 0, domain.high - x, x - domain.low).clamp_min(0)
    return towards * _BOUNDED[norm](weight, room, need)


def _free_linf(weight: Tensor, need: Tensor) -> Tensor:
    return (need / _positive(weight.sum(dim=1, keepdim=True))).expand_as(weight)


def _free_l2(weight: Tensor, need: Tensor) -> Tensor:
    return weight * (need / _positive(weight.square().sum(dim=1, keepdim=True)))


def _free_l1(weight: Tensor, need: Tensor) -> Tensor:
    first = weight.argmax(dim=1, keepdim=True)
    move = need / _positive(weight.gather(1, first))
    return torch.zeros_like(weight).scatter(1, first, move)


def _walled_linf(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """All move by one level, or to their wall."""
    return torch.minimum(room, _level(weight, room, need))


def _walled_l2(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """All move by one multiple of their weight, or to their wall."""
    reach = torch.where(weight > 0, room / _positive(weight), torch.zeros_like(room))
    level = _level(weight.square(), reach, need)
    return torch.minimum(room, torch.minimum(reach, level) * weight)


def _walled_l1(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """The heaviest move to their wall, one after the other, until the need is met."""
    ordered, order = weight.sort(dim=1, descending=True, stable=True)
    vessels = room.gather(1, order)
    filled = ordered * vessels
    left = (need - (filled.cumsum(dim=1) - filled)).clamp_min(0)
    moves = torch.minimum(vessels, left / _positive(ordered))
    return torch.empty_like(moves).scatter(1, order, moves)


def _level(rate: Tensor, reach: Tensor, need: Tensor) -> Tensor:
    """The level t [N, 1] with `sum_i rate_i min(t, reach_i) = need`; infinite if none is enough.

    Newton's method from t = 0 on a concave, increasing, piecewise linear function: it never
    overshoots, and each step passes a breakpoint or ends at the exact root. It takes a handful of
    steps where sorting the breakpoints takes D log D operations.
    """
    level = torch.zeros_like(need)
    for _ in range(reach.shape[1] + 1):
        open_ = reach > level
        below = (rate * torch.where(open_, 0.0, reach)).sum(dim=1, keepdim=True)
        slope = (rate * open_).sum(dim=1, keepdim=True)
        target = torch.where(slope > 0, (need - below) / _positive(slope), torch.inf)
        higher = torch.maximum(level, target)
        if not bool((higher > level).any()):
            break
        level = higher
    return level


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.ones_like(x))


_UNBOUNDED = {"linf": _free_linf, "l2": _free_l2, "l1": _free_l1}
_BOUNDED = {"linf": _walled_linf, "l2": _walled_l2, "l1": _walled_l1}
