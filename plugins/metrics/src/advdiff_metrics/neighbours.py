"""Nearest neighbours in a feature space."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.math.statistics import batches

__all__ = ["Nearest", "nearest_of"]

#: Rows compared at once: with 50,000 others a block takes 200 MB.
ROWS = 1_000


class Nearest(NamedTuple):
    """The nearest other of each row.

    Attributes:
        similarity: Cosine similarity to it [N].
        row: Which one it is [N].
    """

    similarity: Tensor
    row: Tensor


def nearest_of(a: Tensor, b: Tensor, *, same: bool = False) -> Nearest:
    """The row of `b` [M, D] with the largest cosine similarity to each row of `a` [N, D].

    Args:
        a: Features [N, D].
        b: Features [M, D].
        same: The two are one set, of which no row is its own neighbour.
    """
    others = F.normalize(b, dim=1)
    values, places, start = [], [], 0
    for part in batches(F.normalize(a, dim=1), ROWS):
        found = part @ others.T
        if same:
            rows = torch.arange(len(part))
            found[rows, start + rows] = -2.0
        best = found.max(dim=1)
        values.append(best.values.clamp(-1, 1))
        places.append(best.indices)
        start += len(part)
    return Nearest(torch.cat(values), torch.cat(places))
