"""Linear interpolation between data and noise."""

from __future__ import annotations

from torch import Tensor

from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.settings import setting, settings

__all__ = ["Flow"]


class Flow(NoiseSchedule):
    """Linear interpolation between data and noise: alpha = 1 - t, sigma = t.

    Lipman et al. (2023) with optimal-transport paths; Liu et al. (2023). At t = 1 the input holds
    no signal and eps says nothing of x0, so `t_max` stops short of it; starting from pure noise
    there changes the marginal by a share `1 - t_max`.
    """

    @settings
    class Settings:
        """Range of the training times."""

        t_min: float = setting(1e-4, help="Smallest training time.", gt=0, lt=0.5)
        t_max: float = setting(0.9999, help="Largest time; below 1.", gt=0.5, lt=1)

    settings: Settings

    @property
    def t_min(self) -> float:
        """Smallest training time."""
        return self.settings.t_min

    @property
    def t_max(self) -> float:
        """Largest time."""
        return self.settings.t_max

    def alpha(self, t: Tensor) -> Tensor:
        """`1 - t`, any shape."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """`t`, any shape."""
        return t

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """`1 / (1 + exp(log_snr / 2))`, clamped to the range, any shape."""
        return (-log_snr / 2).sigmoid().clamp(self.t_min, self.t_max)
