"""Distances between two images, one number per sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from advdiff_core import Build
from advdiff_core.settings import setting, settings

__all__ = ["Distance", "DistanceKeys", "l1", "l2", "pseudo_huber", "pseudo_huber_mean"]

#: Two batches [B, ...] in, one number per sample [B] out.
Distance = Callable[[Tensor, Tensor], Tensor]

#: Constant of pseudo-Huber over the root of the number of entries (Song & Dhariwal, 2023).
HUBER = 0.00054


@settings
class DistanceKeys:
    """Keys of a distance."""

    distance: Literal["l2", "l1", "pseudo-huber", "lpips"] = setting(
        "l2", help="mean square, mean absolute difference, pseudo-Huber norm, or LPIPS (VGG)"
    )
    huber_c: float | None = setting(
        None, gt=0.0, applies=("distance", ("pseudo-huber",)),
        help="constant of pseudo-huber; 0.00054 sqrt(entries of a sample) if left out",
    )  # fmt: skip

    def build(self, build: Build) -> Distance:
        """The distance, ready for the data; see `lpips` for what it may refuse."""
        if self.distance == "lpips":
            from advdiff_atdiff.perceptual import Perceptual

            return Perceptual(build)
        if self.distance == "pseudo-huber":
            return lambda a, b: pseudo_huber(a, b, self.huber_c)
        return l1 if self.distance == "l1" else l2


def l2(a: Tensor, b: Tensor) -> Tensor:
    """Mean over entries of the squared difference of `a` and `b` [B, ...]: [B]."""
    return (a - b).square().flatten(1).mean(1)


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean over entries of the absolute difference of `a` and `b` [B, ...]: [B]."""
    return (a - b).abs().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float | None = None) -> Tensor:
    """`sqrt(|a - b|_2^2 + c^2) - c` of each sample [B] (Song & Dhariwal, 2023, section 3.3).

    Args:
        a: Samples [B, ...].
        b: Samples [B, ...].
        c: Where it turns from square to norm; None for `0.00054 sqrt(D)` with D entries (FOUND).
    """
    c = HUBER * math.sqrt(a[0].numel()) if c is None else c
    squared = (a - b).square().flatten(1).sum(1)
    # |r|^2 / (sqrt(|r|^2 + c^2) + c) is the same without cancellation.
    return squared / ((squared + c * c).sqrt() + c)


def pseudo_huber_mean(a: Tensor, b: Tensor, c: float = 0.001) -> Tensor:
    """Mean over entries of `sqrt((a - b)^2 + c^2) - c` [B], as in the released code of LCM (FOUND).

    Args:
        a: Samples [B, ...].
        b: Samples [B, ...].
        c: Where it turns from square to absolute value.
    """
    squared = (a - b).square()
    root = torch.sqrt(squared + c * c)
    return (squared / (root + c)).flatten(1).mean(1)
