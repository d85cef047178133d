"""How much signal and noise there is at a time."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Component

__all__ = ["NoiseSchedule"]


class NoiseSchedule(Component):
    """Signal scale `alpha(t)` and noise scale `sigma(t)` of `x_t = alpha(t) x0 + sigma(t) eps`.

    Times live in the schedule's own range `[t_min, t_max]`; noise grows with t. Functions keep the
    floating dtype and device of `t`, are differentiable where the formula is, and draw no numbers.
    A subclass gives `alpha`, `sigma`, the range and, when it has one, a closed inverse.
    """

    #: Number of discrete training times, or None for a continuous schedule.
    num_steps: int | None = None

    #: True if `alpha^2 + sigma^2 = 1` at every time.
    variance_preserving: bool = False

    #: Law of sampling times (see `advdiff_core.math.grids`) for samplers that are not told one.
    default_grid: str = "trailing"

    @property
    @abstractmethod
    def t_min(self) -> float:
        """Smallest training time; the last one at which samplers evaluate a network."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """Largest time; sampling starts there."""

    @property
    def t_zero(self) -> float:
        """Time below `t_min` without noise: `alpha(t_zero) == 1` and `sigma(t_zero) == 0`, exactly.

        Where samplers end. Networks are never evaluated there, and nothing is trained there.
        """
        return 0.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale at `t` [B] (any shape)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation at `t` [B] (any shape)."""

    def log_snr(self, t: Tensor) -> Tensor:
        """`log(alpha^2 / sigma^2)` at `t` [B] (any shape); strictly decreasing in t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`, by bisection in float64; clamped to `[t_min, t_max]`.

        Args:
            log_snr: Values of any shape.
        """
        wanted = log_snr.double()
        low = torch.full_like(wanted, self.t_min)
        high = torch.full_like(wanted, self.t_max)
        for _ in range(64):
            middle = (low + high) / 2
            noisier = self.log_snr(middle) < wanted
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return ((low + high) / 2).to(log_snr.dtype)

    def quantile(self, u: Tensor) -> Tensor:
        """Map uniform numbers `u` in [0, 1) to uniformly distributed training times [B].

        On a discrete schedule the result is one of its `num_steps` times.
        """
        if self.num_steps is None:
            return self.t_min + u * (self.t_max - self.t_min)
        index = (u * self.num_steps).floor().clamp(max=self.num_steps - 1)
        share = index / max(self.num_steps - 1, 1)
        return self.snap(self.t_min + share * (self.t_max - self.t_min))

    def snap(self, t: Tensor) -> Tensor:
        """The training time nearest to `t` [B] (any shape); `t` itself on a continuous schedule."""
        if self.num_steps is None:
            return t
        steps = max(self.num_steps - 1, 1)
        unit = (self.t_max - self.t_min) / steps
        index = ((t - self.t_min) / unit).round().clamp(0, steps)
        # The last index times the unit may round to just above the range.
        return (self.t_min + index * unit).clamp(self.t_min, self.t_max)

    def c_noise(self, t: Tensor) -> Tensor:
        """Default noise-level input of networks at `t` [B]: time on `[0, 1000]`, in its dtype."""
        return 1000.0 * t / self.t_max

    def c_noise_range(self) -> tuple[float, float]:
        """Smallest and largest `c_noise` over the training times."""
        ends = self.c_noise(torch.tensor([self.t_min, self.t_max], dtype=torch.float64))
        return float(ends.min()), float(ends.max())
