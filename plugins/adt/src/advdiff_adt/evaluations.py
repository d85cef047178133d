"""How often a sampler asks its denoiser, found by running it on zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core import Prediction, Sampler, SeedDraws, expand
from advdiff_core.interfaces.query import Setup

__all__ = ["evaluations"]


def evaluations(sampler: Sampler, grid: Tensor, setup: Setup) -> int:
    """Evaluations of the denoiser per sample on a path.

    Args:
        sampler: The sampler.
        grid: Times of the path [N].
        setup: Has the schedule.
    """
    schedule = setup.schedule
    assert schedule is not None, "the sampler refuses recipes without one"

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        still = torch.zeros_like(x_t)
        return Prediction("x0", still, x_t, alpha, sigma, variance=still)

    return sampler.sample(denoise, torch.zeros(1, 1), SeedDraws([0]), grid=grid).nfe
