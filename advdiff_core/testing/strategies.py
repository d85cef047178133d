"""Hypothesis strategies for images, times, noise levels, budgets and perturbations.

Only seeds, sizes and scales are drawn; tensors are built from a generator keyed by them. A witness
thus shrinks in a few steps, to seed 0, one sample and scale 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.math import norms
from advdiff_core.testing.bench import draws, gaussian, scales, seeds
from advdiff_core.types import Budget, Domain, Norm, Unit

__all__ = ["budgets", "deltas", "images", "noise_levels", "times"]

#: Times are drawn from so many equal shares of a schedule's range, ends included.
SHARES = 1000
RADII = (0.1, 8 / 255, 1.0, 1e-4, 5.0)


def images(
    shape: Sequence[int] = (3, 8, 8),
    *,
    batch: tuple[int, int] = (1, 4),
    domain: Domain | None = None,
    dtype: torch.dtype = torch.float64,
) -> SearchStrategy[Tensor]:
    """Batches [B, ...] of images or points.

    Args:
        shape: Shape of one sample.
        batch: Smallest and largest batch size.
        domain: Range the values lie in; normal numbers of several scales if None.
        dtype: Type of the values.
    """

    def build(seed: int, size: int, scale: float) -> Tensor:
        x = gaussian(seed, (size, *shape), scale=scale, dtype=torch.float64)
        if domain is not None:
            x = domain.low + domain.span * x.sigmoid()
        return x.to(dtype)

    return st.builds(build, seeds(), st.integers(*batch), scales())


def times(
    schedule: NoiseSchedule, *, batch: tuple[int, int] | int = (1, 4)
) -> SearchStrategy[Tensor]:
    """Training times [B], float64, of a schedule: its own discrete ones where it has them."""

    def build(shares: list[int]) -> Tensor:
        u = torch.tensor(shares, dtype=torch.float64) / SHARES
        return schedule.snap(schedule.t_min + u * (schedule.t_max - schedule.t_min))

    low, high = (batch, batch) if isinstance(batch, int) else batch
    return st.lists(st.integers(0, SHARES), min_size=low, max_size=high).map(build)


def noise_levels(low: float = 1e-3, high: float = 1e3) -> SearchStrategy[float]:
    """Ratios sigma / alpha, evenly spread over their logarithm; shrink to the smallest."""
    ratio = high / low
    return st.integers(0, SHARES).map(lambda n: float(low * ratio ** (n / SHARES)))


def budgets(
    norm: Sequence[Norm] = ("linf", "l2", "l1"), *, units: Sequence[Unit] = ("image", "noise")
) -> SearchStrategy[Budget]:
    """Budgets of every norm and unit, from 1e-4 to 5."""
    return st.builds(
        Budget, norm=st.sampled_from(tuple(norm)), radius=st.sampled_from(RADII),
        unit=st.sampled_from(tuple(units)),
    )  # fmt: skip


def deltas(
    budget: Budget, shape: Sequence[int], *, dtype: torch.dtype = torch.float64
) -> SearchStrategy[Tensor]:
    """Perturbations [B, ...] uniform in the ball of a budget, or on its boundary.

    Args:
        budget: Norm and radius (one number, or [B]), in the unit of the perturbation.
        shape: Shape [B, ...] of the perturbation.
        dtype: Type of the values.
    """

    def build(seed: int, *, boundary: bool) -> Tensor:
        return delta_in(budget, shape, seed, boundary=boundary).to(dtype)

    return st.builds(build, seeds(), boundary=st.booleans())


def delta_in(budget: Budget, shape: Sequence[int], seed: int, *, boundary: bool = False) -> Tensor:
    """A perturbation [B, ...], float64, in the ball of a budget, from the generator of a seed."""
    rng, radius = draws(seed, shape[0]), torch.as_tensor(budget.radius, dtype=torch.float64)
    limit = radius.expand(shape[0]).reshape(-1, *([1] * (len(shape) - 1)))
    if boundary:
        unit = norms.steepest_ascent(rng.normal(shape).double(), budget.norm)
        return unit * limit
    return norms.uniform_in_ball(shape, norm=budget.norm, radius=1.0, draws=rng).double() * limit
