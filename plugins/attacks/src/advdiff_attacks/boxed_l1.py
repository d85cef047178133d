"""The exact projection onto an L1 ball cut by the range of valid inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.types import Domain

__all__ = ["project_boxed_l1"]

#: Halvings of the bracket around the threshold; float32 tells no more of them apart.
HALVINGS = 32


def project_boxed_l1(x: Tensor, delta: Tensor, radius: Tensor, domain: Domain | None) -> Tensor:
    """The point nearest to `delta` with L1 norm at most `radius` and `x + delta` in the domain.

    Croce and Hein (2021, proposition 2.1): each coordinate keeps its sign and becomes
    `clip(|delta_i| - threshold, 0, room_i)`, where `room_i` is its way to the wall. Halving finds
    the piece of the threshold's piecewise linear equation, which is then solved; no sort.

    Args:
        x: Centres [B, ...], inside the domain.
        delta: Perturbations [B, ...].
        radius: Radius of each ball [B].
        domain: Range of valid inputs, or None.

    Returns:
        Perturbations [B, ...].
    """
    size = delta.abs().flatten(1).double()
    room = _room(x, delta, domain).flatten(1).double()
    limit = radius.to(size.dtype).reshape(-1, 1)
    threshold = _threshold(size, room, limit)
    kept = (size - threshold).clamp_min(0).minimum(room)
    return (kept.reshape(delta.shape) * delta.sign()).to(delta.dtype)


def _room(x: Tensor, delta: Tensor, domain: Domain | None) -> Tensor:
    if domain is None:
        return torch.full_like(x, torch.inf)
    return torch.where(delta >= 0, domain.high - x, x - domain.low).clamp_min(0)


def _threshold(size: Tensor, room: Tensor, limit: Tensor) -> Tensor:
    low, high = torch.zeros_like(limit), size.amax(1, keepdim=True)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = (size - middle).clamp_min(0).minimum(room).sum(1, keepdim=True) > limit
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    free = (size > high) & (size - low < room)
    walls = torch.where(size - high >= room, room, 0).sum(1, keepdim=True)
    solved = (torch.where(free, size, 0).sum(1, keepdim=True) + walls - limit) / free.sum(
        1, keepdim=True
    ).clamp_min(1)
    inside = size.minimum(room).sum(1, keepdim=True) <= limit
    return torch.where(inside, 0, solved.maximum(low).minimum(high))
