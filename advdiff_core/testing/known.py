"""Gaussian data, whose denoiser and whose exact solution are known, for the laws of samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.draws import SeedDraws
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.types import Prediction, expand

__all__ = ["MEAN", "STD", "Known", "NotingDraws", "spread", "start"]

#: Mean and standard deviation of the Gaussian data.
MEAN, STD = 0.25, 0.5


class Known:
    """A denoiser of Gaussian data with known mean and deviation; 0 is a single point.

    Args:
        schedule: The schedule.
        std: Deviation of the data.
        mean: Their mean; may require a gradient.
    """

    def __init__(
        self, schedule: NoiseSchedule, *, std: float = STD, mean: float | Tensor = MEAN
    ) -> None:
        self.schedule, self.std, self.mean = schedule, std, mean
        self.calls = 0
        self.times: list[float] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The posterior mean for `x_t` [B, ...] at `t` [B]."""
        self.calls += 1
        self.times += t.tolist()
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        gain = alpha * self.std**2 / (alpha.square() * self.std**2 + sigma.square())
        x0 = self.mean + gain * (x_t - alpha * self.mean)
        return Prediction("x0", x0, x_t, alpha, sigma)


def start(schedule: NoiseSchedule, numbers: list[int], shape: tuple[int, ...], at: float) -> Tensor:
    """Noise [B, ...] of the size of time `at`, by the image's own seed, float64."""
    sigma = float(schedule.sigma(torch.tensor(at, dtype=torch.float64)))
    noise = SeedDraws(numbers, stream="start").normal((len(numbers), *shape))
    return sigma * noise.double()


def spread(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Standard deviation [...] of the noised data at times `t` [...]."""
    return (schedule.alpha(t).square() * STD**2 + schedule.sigma(t).square()).sqrt()


class NotingDraws:
    """Draws that note whether they were asked for."""

    def __init__(self) -> None:
        self.asked = False

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros of `shape` [B, ...]."""
        self.asked = True
        return torch.zeros(shape)

    def child(self, *words: object) -> NotingDraws:
        """Itself: what a stream of its own is asked for counts."""
        del words
        return self
