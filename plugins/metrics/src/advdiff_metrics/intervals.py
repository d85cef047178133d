"""Intervals of shares."""

from __future__ import annotations

import math
from statistics import NormalDist

__all__ = ["wilson"]


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): true shares that `hits` of `count` do not reject.

    Args:
        hits: Successes.
        count: Trials, at least one.
        confidence: Coverage, for example 0.95.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)
