"""Schedules that add noise to an unscaled signal: alpha = 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.settings import setting, settings

__all__ = ["EDM", "VE"]


@settings
class NoiseRange:
    """Smallest and largest noise.

    Raises:
        ValueError: If they are not in this order.
    """

    sigma_min: float = setting(0.01, help="Smallest noise standard deviation.", gt=0)
    sigma_max: float = setting(50.0, help="Largest noise standard deviation.", gt=0)

    def __attrs_post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            message = f"sigma_min: {self.sigma_min} must be below sigma_max = {self.sigma_max}"
            raise ValueError(message)


class VE(NoiseSchedule):
    """Variance exploding: alpha = 1, sigma grows geometrically from sigma_min to sigma_max.

    Song et al. (2021), eq. 9 and appendix C: `sigma(t) = sigma_min (sigma_max / sigma_min)^t`, t in
    [0, 1]. A geometric law has no zero; below t = 0 sigma falls linearly, to 0 at `t_zero = -1`.
    """

    @settings
    class Settings(NoiseRange):
        """Range of the noise."""

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._log_ratio = math.log(self.settings.sigma_max / self.settings.sigma_min)

    @property
    def t_min(self) -> float:
        """Time of sigma_min."""
        return 0.0

    @property
    def t_max(self) -> float:
        """Time of sigma_max."""
        return 1.0

    @property
    def t_zero(self) -> float:
        """Time without noise."""
        return -1.0

    def alpha(self, t: Tensor) -> Tensor:
        """1, any shape."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation at `t`, any shape."""
        growth = torch.where(t < 0, 1 + t, (self._log_ratio * t.clamp_min(0)).exp())
        return self.settings.sigma_min * growth

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Closed inverse of `log_snr`, clamped to [0, 1], any shape."""
        log_sigma = -log_snr.double() / 2
        t = (log_sigma - math.log(self.settings.sigma_min)) / self._log_ratio
        return t.clamp(0.0, 1.0).to(log_snr.dtype)


class EDM(NoiseSchedule):
    """Karras et al. (2022): alpha = 1 and t = sigma.

    Training times follow `density = { law = "log-normal", mean = -1.2, std = 1.2 }` in the paper.
    """

    @settings
    class Settings(NoiseRange):
        """Range of the noise."""

        sigma_min: float = setting(0.002, help="Smallest noise standard deviation.", gt=0)
        sigma_max: float = setting(80.0, help="Largest noise standard deviation.", gt=0)

    settings: Settings
    # Equal steps of sigma would spend nearly all of them where only noise is seen.
    default_grid = "karras"

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return self.settings.sigma_min

    @property
    def t_max(self) -> float:
        """sigma_max."""
        return self.settings.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """1, any shape."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """`t`, any shape."""
        return t

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """`exp(-log_snr / 2)`, clamped to the range, any shape."""
        return (-log_snr / 2).exp().clamp(self.t_min, self.t_max)

    def c_noise(self, t: Tensor) -> Tensor:
        """Position of `log t` between the ends, scaled to [0, 1000], in the dtype of `t`.

        Linear in t half of all times would fall below 4, where an embedding cannot tell them apart.
        """
        low, high = math.log(self.t_min), math.log(self.t_max)
        return 1000.0 * (t.clamp_min(self.t_min).log() - low) / (high - low)
