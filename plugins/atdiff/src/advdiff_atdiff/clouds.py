"""Sets of samples at one noise level, as little of them as their distances need."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advdiff_core.draws import keyed_generator
from advdiff_core.math.statistics import wasserstein_1d_squared

__all__ = ["Cloud", "directions_of", "distance", "quotient"]


class Cloud:
    """Running sums over the samples of one noise level, which come in batches.

    Kept are the projections onto a few directions, the variance, and the size of what a network
    predicted there; the samples are not.

    Args:
        directions: Unit directions [P, D], float64.
    """

    def __init__(self, directions: Tensor) -> None:
        self._directions = directions
        self._projected: list[Tensor] = []
        self._sizes: list[Tensor] = []
        self._sum = directions.new_zeros(directions.shape[1])
        self._squares = 0.0
        self.count = 0

    def add(self, x: Tensor, eps_hat: Tensor | None = None) -> None:
        """Add samples [B, ...] and, if there is one, the predicted noise at each [B, ...]."""
        flat = x.detach().cpu().double().flatten(1)
        self._projected.append(flat @ self._directions.T)
        self._sum += flat.sum(dim=0)
        self._squares += float(flat.square().sum())
        self.count += len(flat)
        if eps_hat is not None:
            flat = eps_hat.detach().cpu().double().flatten(1)
            self._sizes.append(flat.square().mean(dim=1).sqrt())

    @property
    def projected(self) -> Tensor:
        """Projections [N, P], float64."""
        return torch.cat(self._projected)

    @property
    def variance(self) -> float:
        """Variance over samples, mean over dimensions: trace of the covariance over D."""
        mean = self._sum / self.count
        spread = self._squares / self.count - float(mean.square().sum())
        return max(spread, 0.0) / len(mean)

    @property
    def sizes(self) -> Tensor:
        """Root mean square over dimensions of each predicted noise [N], float64."""
        return torch.cat(self._sizes)


def distance(a: Cloud, b: Cloud) -> float:
    """Sliced 2-Wasserstein distance of two sets (Rabin et al., 2012), in their units.

    Root of the mean over the directions of the exact squared 1-D distances. Both have to know the
    same directions.
    """
    return math.sqrt(float(wasserstein_1d_squared(a.projected, b.projected).mean()))


def directions_of(count: int, width: int, seed: int) -> Tensor:
    """Unit directions [P, D], float64, uniform on the sphere; those of `seed` alone.

    Args:
        count: Number of directions P.
        width: Dimensions D.
        seed: Chooses them.
    """
    generator = keyed_generator("distribution-gap", seed)
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def quotient(a: float, b: float) -> float:
    """`a / b` of sizes, neither below 0; 1 for 0 / 0, and finite always."""
    return 1.0 if a == b else a / max(b, 1e-12)
