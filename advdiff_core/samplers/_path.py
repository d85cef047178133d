"""The noise levels of a grid as plain numbers, and a denoiser evaluated on them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.sampler import Denoise
from advdiff_core.types import Domain, Prediction

__all__ = [
    "Estimate",
    "Evaluator",
    "Level",
    "State",
    "level_at_log_snr",
    "levels_of",
    "linear_coefficients",
]


class Level(NamedTuple):
    """One time of a grid. Plain numbers: coefficients made of them never wait for a device.

    Attributes:
        t: The time.
        alpha: Signal scale.
        sigma: Noise scale.
        log_snr: `log(alpha^2 / sigma^2)`; infinite without noise.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def ratio(self) -> float:
        """`sigma / alpha`, the noise level of Karras et al. (2022)."""
        return self.sigma / self.alpha

    def forgotten(self, after: Level) -> float:
        """`1 - snr / snr_after`: share of this level's noise that is gone at a less noisy one."""
        return -math.expm1(self.log_snr - after.log_snr)


class State(NamedTuple):
    """What goes from one step to the next.

    Attributes:
        x: The sample on its way [B, ...].
        x0: Clean estimate of the step before [B, ...]; None at the start.
    """

    x: Tensor
    x0: Tensor | None = None


class Estimate(NamedTuple):
    """A prediction as samplers use it.

    Attributes:
        x0: Clean estimate [B, ...], clipped if asked for.
        eps: The noise that goes with it [B, ...].
        prediction: What the denoiser returned.
    """

    x0: Tensor
    eps: Tensor
    prediction: Prediction


class Evaluator:
    """Evaluates a denoiser at levels, and counts.

    Args:
        denoise: The denoiser.
        clip: Range to clip the clean estimate to; None for no clipping.
        keep_eps: Leave the predicted noise as it is where the clean estimate was clipped.
    """

    def __init__(self, denoise: Denoise, *, clip: Domain | None, keep_eps: bool = False) -> None:
        self.denoise = denoise
        self.clip = clip
        self.keep_eps = keep_eps
        self.calls = 0

    def __call__(self, x: Tensor, level: Level) -> Estimate:
        """Estimate at `x` [B, ...], all of whose samples are at `level`."""
        self.calls += 1
        t = torch.full((x.shape[0],), level.t, dtype=x.dtype, device=x.device)
        prediction = self.denoise(x, t)
        x0, eps = prediction.x0, prediction.eps
        if self.clip is not None:
            x0 = x0.clamp(self.clip.low, self.clip.high)
            eps = eps if self.keep_eps else (x - level.alpha * x0) / level.sigma
        return Estimate(x0, eps, prediction)


def levels_of(schedule: NoiseSchedule, grid: Tensor, *, where: str) -> list[Level]:
    """The levels of a grid.

    Args:
        schedule: The noise schedule.
        grid: Times [n + 1], strictly decreasing.
        where: Key of the sampler, for the message.

    Raises:
        ContractError: If the grid is not of that form.
    """
    times = grid.detach().double().cpu()
    if times.dim() != 1 or times.shape[0] < 2 or not bool((times.diff() < 0).all()):
        message = f"a grid of shape {list(times.shape)} that does not fall from time to time"
        raise ContractError(message, where=where, fix="give times [n + 1], n >= 1, noisiest first")
    return _levels(schedule, times)


def level_at_log_snr(schedule: NoiseSchedule, log_snr: float) -> Level:
    """The level with this log-SNR, or the end of the schedule's range if it lies outside."""
    t = schedule.time_of_log_snr(torch.tensor([log_snr], dtype=torch.float64))
    return _levels(schedule, t)[0]


def _levels(schedule: NoiseSchedule, times: Tensor) -> list[Level]:
    columns = (times, schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times))
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def linear_coefficients(
    schedule: NoiseSchedule, t: Tensor, t_next: Tensor
) -> tuple[Tensor, Tensor]:
    """`(a, b)` of the deterministic step `x_next = a * x + b * eps_hat`, in the dtype of `t`.

    `x_next = alpha_next * (x - sigma * eps_hat) / alpha + sigma_next * eps_hat`.

    Args:
        schedule: The noise schedule.
        t: Times of any shape.
        t_next: Smaller times, same shape.
    """
    start, end = t.double(), t_next.double()
    a = schedule.alpha(end) / schedule.alpha(start)
    b = schedule.sigma(end) - a * schedule.sigma(start)
    return a.to(t.dtype), b.to(t.dtype)
