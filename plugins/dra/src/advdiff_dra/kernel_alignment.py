"""CKNNA: how alike the neighbourhoods of two representations are. Exact in float64."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_dra.geometry import rows_at_once

__all__ = ["cknna", "clipped", "hsic_unbiased", "neighbours"]


class _Sparse(NamedTuple):
    """A square matrix without diagonal that is zero but for some places.

    Attributes:
        keys: Places as `row * size + column`, ascending [E].
        values: Values there [E].
        size: Rows and columns.
    """

    keys: Tensor
    values: Tensor
    size: int

    def sums(self, *, rows: bool) -> Tensor:
        """Sum of each row, or of each column [N]."""
        where = self.keys // self.size if rows else self.keys % self.size
        return self.values.new_zeros(self.size).index_add(0, where, self.values)

    def transposed(self) -> Tensor:
        """Values of the transposed matrix at this one's places [E]."""
        keys = self.keys % self.size * self.size + self.keys // self.size
        place = torch.searchsorted(self.keys, keys).clamp_max(max(len(self.keys) - 1, 0))
        return torch.where(self.keys[place] == keys, self.values[place], 0.0)


def clipped(features: Tensor, quantile: float) -> Tensor:
    """Features [N, D] cut to the given quantile of their magnitudes, over all entries.

    The step against outliers of Huh et al. (2024); `quantile = 1` leaves them as they are. The
    quantile is one of the magnitudes themselves: the value at place `floor(quantile * N * D)`.
    """
    if quantile >= 1:
        return features
    magnitudes = features.abs().flatten()
    # kthvalue counts from 1.
    place = min(int(quantile * magnitudes.numel()), magnitudes.numel() - 1) + 1
    limit = float(magnitudes.kthvalue(place).values)
    return features.clamp(-limit, limit)


def neighbours(z: Tensor, k: int) -> Tensor:
    """The k rows with the largest inner product with each row, itself left out, int64 [N, k].

    O(N^2 D) operations; memory for a strip of rows.

    Args:
        z: Unit vectors [N, D].
        k: Neighbours, at most N - 1.
    """
    parts = []
    step = rows_at_once(len(z))
    for start in range(0, len(z), step):
        products = z[start : start + step] @ z.T
        own = torch.arange(len(products))
        products[own, start + own] = -math.inf
        parts.append(products.topk(k, dim=1).indices)
    return torch.cat(parts)


def hsic_unbiased(one: _Sparse, other: _Sparse) -> float:
    """Unbiased HSIC of two matrices without diagonals that are zero outside the same places.

    `[sum(K * L^T) + sum(K) sum(L) / ((n-1)(n-2)) - 2 sum(K L) / (n-2)] / (n (n-3))` (Song et al.
    2012, eq. 5). `sum(K L)` is the product of the column sums of K with the row sums of L, so that
    all takes O(E log E) for E places, not the O(N^3) of a product of matrices.
    """
    n = one.size
    crossed = (one.values * other.transposed()).sum()
    total = one.values.sum() * other.values.sum() / ((n - 1) * (n - 2))
    chained = one.sums(rows=False) @ other.sums(rows=True)
    return float((crossed + total - 2 * chained / (n - 2)) / (n * (n - 3)))


def cknna(first: Tensor, second: Tensor, *, k: int = 10) -> float:
    """Centred kernel nearest-neighbour alignment (Huh et al. 2024, appendix A) of two features.

    Inner products of unit features are kept where j is one of the k nearest neighbours of i in
    both, and compared by unbiased HSIC: `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`, where K and L
    of the denominator are kept at their own neighbours. 1 for equal neighbourhoods, about 0 for
    unrelated ones. It does not change if either is turned or scaled. Being a neighbour is not
    mutual, so the order of K and L would matter to the last term; the mean of both orders is taken.

    Args:
        first: Features [N, D], N >= 4.
        second: Features of the same samples [N, E].
        k: Neighbours, at most N - 1.

    Returns:
        The score; NaN where a denominator is not positive.
    """
    count = len(first)
    z = [F.normalize(one.double(), dim=1) for one in (first, second)]
    keys = [_keys(neighbours(one, k)) for one in z]
    both = keys[0][torch.isin(keys[0], keys[1], assume_unique=True)]
    common = [_kept(one, both, count) for one in z]
    own = [_kept(one, places, count) for one, places in zip(z, keys, strict=True)]
    scale = [hsic_unbiased(one, one) for one in own]
    if min(scale) <= 0:
        return math.nan
    shared = (hsic_unbiased(*common) + hsic_unbiased(*reversed(common))) / 2
    return shared / math.sqrt(scale[0] * scale[1])


def _keys(found: Tensor) -> Tensor:
    count = len(found)
    return (torch.arange(count)[:, None] * count + found).flatten().sort().values


def _kept(z: Tensor, keys: Tensor, count: int) -> _Sparse:
    """Inner products of unit vectors at some places."""
    step = rows_at_once(2 * z.shape[1])
    parts = [(z[one // count] * z[one % count]).sum(1) for one in torch.split(keys, step)]
    return _Sparse(keys, torch.cat(parts) if parts else z.new_zeros(0), count)
