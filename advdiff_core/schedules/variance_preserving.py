"""Variance-preserving schedules: alpha^2 + sigma^2 = 1.

Both are given by `log alpha_bar(t)` with `alpha_bar = alpha^2`, evaluated in float64 whatever the
dtype of t: in float32 `1 - alpha_bar` would lose half its digits at small t.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.settings import setting, settings

__all__ = ["VPCosine", "VPLinear"]


@settings
class DiscreteTime:
    """Whether time is discrete.

    Raises:
        ValueError: For a single discrete time, which leaves nothing to sample over.
    """

    num_steps: int = setting(
        1000, help="Number of discrete training times; 0 for the continuous schedule.", ge=0
    )

    def __attrs_post_init__(self) -> None:
        if self.num_steps == 1:
            message = "num_steps: 1 must be 0 (continuous time) or at least 2"
            raise ValueError(message)


class _VP(NoiseSchedule):
    """What the two schedules share: a table between discrete times, or a formula.

    A discrete schedule has times `t_i = (i + 1) / num_steps`; between them, and from the first down
    to `alpha_bar(0) = 1`, `log alpha_bar` is interpolated linearly: solvers may stop anywhere.
    """

    variance_preserving = True

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.num_steps = settings.num_steps or None
        self._tables: dict[torch.device, Tensor] = {}

    @property
    def t_min(self) -> float:
        """Smallest training time: `1 / num_steps`, or the setting of a continuous schedule."""
        return 1 / self.num_steps if self.num_steps else float(self.settings.t_min)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale `sqrt(alpha_bar)`, any shape."""
        return (self._log_alpha_bar(t) / 2).exp().to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise standard deviation `sqrt(1 - alpha_bar)`, any shape."""
        return torch.expm1(self._log_alpha_bar(t)).abs().sqrt().to(t.dtype)

    def log_snr(self, t: Tensor) -> Tensor:
        """`log(alpha_bar / (1 - alpha_bar))`, any shape."""
        log_alpha_bar = self._log_alpha_bar(t)
        return (log_alpha_bar - torch.expm1(log_alpha_bar).abs().log()).to(t.dtype)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Inverse of `log_snr` in closed form, clamped to the range, any shape."""
        log_alpha_bar = F.logsigmoid(log_snr.double())
        t = self._invert_table(log_alpha_bar) if self.num_steps else self._invert(log_alpha_bar)
        return t.clamp(self.t_min, self.t_max).to(log_snr.dtype)

    @abstractmethod
    def _betas(self, num_steps: int) -> Tensor:
        """Discrete noise increments [num_steps], float64."""

    @abstractmethod
    def _formula(self, t: Tensor) -> Tensor:
        """`log alpha_bar` of the continuous schedule at float64 `t`."""

    @abstractmethod
    def _invert(self, log_alpha_bar: Tensor) -> Tensor:
        """Inverse of `_formula`."""

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        if not self.num_steps:
            return self._formula(t.double())
        table = self._table(t.device)
        place = t.double() * self.num_steps
        below = place.detach().floor().long().clamp(0, self.num_steps - 1)
        return torch.lerp(table[below], table[below + 1], place - below)

    def _table(self, device: torch.device) -> Tensor:
        """`log alpha_bar` at t = 0 and at the discrete times [num_steps + 1], kept per device."""
        if device not in self._tables:
            assert self.num_steps is not None
            steps = torch.log1p(-self._betas(self.num_steps))
            table = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
            self._tables[device] = table.to(device)
        return self._tables[device]

    def _invert_table(self, log_alpha_bar: Tensor) -> Tensor:
        assert self.num_steps is not None
        decay = -self._table(log_alpha_bar.device)
        above = torch.searchsorted(decay, -log_alpha_bar).clamp(1, self.num_steps)
        low, high = decay[above - 1], decay[above]
        return (above - 1 + (-log_alpha_bar - low) / (high - low)) / self.num_steps


class VPLinear(_VP):
    """Variance preserving with linearly growing noise increments (DDPM; the VP SDE).

    Discrete: Ho et al. (2020), `beta_i` from `beta_start` to `beta_end` over `num_steps` times. The
    same shape at another number of steps needs other betas. Latent diffusion (Rombach et al.,
    2022) has `beta_start = 0.00085, beta_end = 0.012, root = true`. Continuous (`num_steps = 0`):
    Song et al. (2021), eq. 33, on (0, 1],
    `log alpha_bar(t) = -t^2 (beta_max - beta_min) / 2 - t beta_min`.
    """

    @settings
    class Settings(DiscreteTime):
        """Noise increments.

        Raises:
            ValueError: For square roots that grow linearly in continuous time.
        """

        beta_start: float = setting(1e-4, help="First increment, discrete.", gt=0, lt=1)
        beta_end: float = setting(0.02, help="Last increment, discrete.", gt=0, lt=1)
        root: bool = setting(
            default=False,
            help="The increments' square roots grow linearly, as in Stable Diffusion; discrete.",
        )
        beta_min: float = setting(0.1, help="Rate of noise at t = 0, continuous.", gt=0)
        beta_max: float = setting(20.0, help="Rate of noise at t = 1, continuous.", gt=0)
        t_min: float = setting(1e-5, help="Smallest training time, continuous.", gt=0, lt=1)

        def __attrs_post_init__(self) -> None:
            """Check the number of times, and that they are discrete where that matters."""
            DiscreteTime.__attrs_post_init__(self)
            if self.root and not self.num_steps:
                message = "root: true is for discrete times, num_steps: 0 is continuous"
                raise ValueError(message)

    settings: Settings

    @property
    def t_max(self) -> float:
        """Largest time."""
        return 1.0

    def _betas(self, num_steps: int) -> Tensor:
        first, last = self.settings.beta_start, self.settings.beta_end
        if self.settings.root:
            roots = torch.linspace(first**0.5, last**0.5, num_steps, dtype=torch.float64)
            return roots.square()
        return torch.linspace(first, last, num_steps, dtype=torch.float64)

    def _formula(self, t: Tensor) -> Tensor:
        low, high = self.settings.beta_min, self.settings.beta_max
        return -t * (t * (high - low) / 2 + low)

    def _invert(self, log_alpha_bar: Tensor) -> Tensor:
        # The root of the quadratic in the form that does not cancel for small times.
        low, high = self.settings.beta_min, self.settings.beta_max
        log_alpha_bar = log_alpha_bar.clamp_min(-(low + high) / 2)  # its value at t = 1
        return -2 * log_alpha_bar / (low + (low**2 - 2 * (high - low) * log_alpha_bar).sqrt())


class VPCosine(_VP):
    """Variance preserving with a squared-cosine signal (Nichol and Dhariwal, 2021, eq. 17).

    `alpha_bar(t) = f(t) / f(0)`, `f(t) = cos^2(pi / 2 (t + s) / (1 + s))`. The discrete form clips
    the increments at `max_beta`. In the continuous form (`num_steps = 0`) the signal vanishes at
    t = 1, so `t_max` stops short of it.
    """

    @settings
    class Settings(DiscreteTime):
        """Offset and clipping."""

        s: float = setting(0.008, help="Offset that keeps the first increments above zero.", ge=0)
        max_beta: float = setting(0.999, help="Largest increment, discrete.", gt=0, lt=1)
        t_min: float = setting(1e-4, help="Smallest training time, continuous.", gt=0, lt=0.5)
        t_max: float = setting(0.9999, help="Largest time, continuous.", gt=0.5, lt=1)

    settings: Settings

    @property
    def t_max(self) -> float:
        """Largest time: 1, or the setting of a continuous schedule."""
        return 1.0 if self.num_steps else self.settings.t_max

    @property
    def _offset(self) -> float:
        return math.pi / 2 * self.settings.s / (1 + self.settings.s)

    def _betas(self, num_steps: int) -> Tensor:
        t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        signal = ((t + self.settings.s) / (1 + self.settings.s) * math.pi / 2).cos().square()
        return (1 - signal[1:] / signal[:-1]).clamp(max=self.settings.max_beta)

    def _formula(self, t: Tensor) -> Tensor:
        # cos(a) / cos(b) for a = b + d without cancellation, and exactly 1 at d = 0.
        d = t / (1 + self.settings.s) * math.pi / 2
        fall = 2 * (d / 2).sin().square() + math.tan(self._offset) * d.sin()
        return 2 * torch.log1p(-fall.clamp(max=1 - 1e-12))

    def _invert(self, log_alpha_bar: Tensor) -> Tensor:
        # Near 1 an arc cosine has half the digits; the arc sine of half the angle has all.
        b = self._offset
        half = (
            (math.sin(b / 2) ** 2 - math.cos(b) / 2 * torch.expm1(log_alpha_bar / 2)).sqrt().asin()
        )
        return (2 * half - b) * 2 / math.pi * (1 + self.settings.s)
