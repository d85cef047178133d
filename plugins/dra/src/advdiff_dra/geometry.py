"""How features lie on the unit sphere: uniformity and alignment. Exact in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAIRS_AT_ONCE", "alignment", "rows_at_once", "uniformity"]

#: Pairs that are held in memory together: 64 MiB in float64.
PAIRS_AT_ONCE = 2**23


def rows_at_once(columns: int) -> int:
    """Rows of a table with so many columns that `PAIRS_AT_ONCE` allows; at least one."""
    return max(1, PAIRS_AT_ONCE // max(1, columns))


def uniformity(features: Tensor, *, t: float = 2.0, rows: int | None = None) -> float:
    """`log E exp(-t |z_i - z_j|^2)` over all pairs i < j, with z = feature / |feature|.

    Wang and Isola (2020, section 4.1.2): in [-4 t, 0], lower is more uniform. All pairs are read:
    a mean of the values of small batches is another, biased number. O(N^2 D) operations; memory
    for `PAIRS_AT_ONCE` pairs.

    Args:
        features: Features [N, D], N >= 2.
        t: Inverse width of the Gaussian potential.
        rows: Rows of pairs at once; as many as `PAIRS_AT_ONCE` allows if None.
    """
    z = F.normalize(features.double(), dim=1)
    count, parts = len(z), []
    step = rows or rows_at_once(count)
    for start in range(0, count, step):
        later = z[start:]
        # |z_i - z_j|^2 = 2 - 2 z_i.z_j on the sphere; rounding may give -1e-16.
        squared = (2 - 2 * z[start : start + step] @ later.T).clamp_min(0)
        pairs = torch.ones_like(squared, dtype=torch.bool).triu(1)
        parts.append(torch.logsumexp(-t * squared[pairs], dim=0))
    return float(torch.logsumexp(torch.stack(parts), dim=0)) - math.log(count * (count - 1) / 2)


def alignment(features: Tensor, moved: Tensor, *, alpha: float = 2.0) -> float:
    """`E |z - z'|^alpha` over pairs of the same rows, with z = feature / |feature|.

    Wang and Isola (2020, section 4.1.1); in [0, 2^alpha], lower is more aligned. O(N D).

    Args:
        features: Features [N, D].
        moved: Features of the other view of each [N, D].
        alpha: Exponent.
    """
    z, other = (F.normalize(one.double(), dim=1) for one in (features, moved))
    return float((z - other).norm(dim=1).pow(alpha).mean())
