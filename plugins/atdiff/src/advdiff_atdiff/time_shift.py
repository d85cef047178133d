"""Time shift: a denoiser is told the time that the spread of its input fits best."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from advdiff_atdiff.wrapped import Wrapped
from advdiff_core import Build, Denoise, NoiseSchedule, Prediction, Spec
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["TimeShift"]

#: Times of a continuous schedule among which one is chosen.
TIMES = 1000


class TimeShift(Wrapped):
    """Another sampler whose denoiser is asked at the time that fits the state's variance (TS-DPM).

    Li et al. (2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted
    Time Steps"). After a step the state may be noisier or cleaner than the grid says; above the
    cutoff, the time told is the one within the window about the grid's time for which
    `1 - alpha_bar` is nearest to the variance over the entries of each sample. The first evaluation
    is left alone. FOUND in the paper's code: the rule, the variance (over n - 1), the first
    evaluation; windows and cutoffs of 30 and 300 of 1000 times (5 steps, our defaults), 10 and 900,
    5 and 550. There the solvers differ in what moves: the time that the network is told, or the
    time that a step ends at. DERIVED, for any sampler: the whole prediction is that at the shifted
    time, x0_hat included, and the step goes on along the grid from it; where `clip_x0` clips, the
    noise is the grid's.

    `data_variance` adds `alpha_bar` times the variance of clean samples to what is expected, which
    the paper leaves out. Variance-preserving schedules alone. A sample of few entries has no
    variance to speak of: meant for images. With `window = 0` samples are those of the other
    sampler, bit for bit. Steps are not linear in the noise, as the shift depends on the state.
    """

    source: ClassVar[str] = "Li et al. (2024, arXiv 2305.15583)"

    @settings
    class Settings:
        """Keys of `use = "time-shift"`."""

        sampler: Spec = setting(kind="sampler", help="the sampler whose denoiser is told the times")
        window: float = setting(
            0.03, ge=0.0, le=2.0, help="width of the window, as a share of the largest time"
        )
        cutoff: float = setting(
            0.3, ge=0.0, le=1.0, help="time below which nothing moves, as a share of the largest"
        )
        data_variance: float = setting(
            0.0, ge=0.0, lt=1.0, help="variance over the entries of a clean sample"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.schedule = _preserving(build)
        if build.data is not None and math.prod(build.data.shape) < 2:
            message = f"samples of shape {list(build.data.shape)} have no variance over entries"
            refuse(build, "use", message, "use it for images")
        self._known: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def changed(self, denoise: Denoise, times: Tensor) -> Denoise:
        """The denoiser at shifted times; `times` [N + 1] falling."""
        if self.settings.window == 0:
            return denoise
        first = float(times[0])

        def shifted(x_t: Tensor, t: Tensor) -> Prediction:
            return denoise(x_t, self.shifted(x_t.detach(), t, first))

        return shifted

    @torch.no_grad()
    def shifted(self, x_t: Tensor, t: Tensor, first: float) -> Tensor:
        """The times [B] told for states `x_t` [B, ...] at times `t` [B], in the type of `t`.

        Args:
            x_t: States.
            t: Times of the grid.
            first: Time of the first evaluation, which is left alone.
        """
        times, expected = self._table(x_t.device)
        wide = torch.promote_types(x_t.dtype, torch.float32)
        variance = x_t.to(wide).flatten(1).var(dim=1).to(times)
        now = t.to(times)[:, None]
        outside = (times - now).abs() > self.settings.window / 2 * self.schedule.t_max * (1 + 1e-9)
        gap = (expected - variance[:, None]).abs().masked_fill(outside, math.inf)
        chosen = times[gap.argmin(dim=1)]
        # Single precision may have rounded the first time.
        moves = (t > self.settings.cutoff * self.schedule.t_max) & (t < first * (1 - 1e-6))
        return torch.where(moves & ~outside.all(dim=1), chosen.to(t), t)

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Times that may be told [K], float64, and the variance expected at them [K]."""
        if device not in self._known:
            count = self.schedule.num_steps or TIMES
            u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
            times = self.schedule.quantile(u)
            noise = self.schedule.sigma(times).square()
            data = self.settings.data_variance * self.schedule.alpha(times).square()
            self._known[device] = times.to(device), (data + noise).to(device)
        return self._known[device]


def _preserving(build: Build) -> NoiseSchedule:
    """The schedule.

    Raises:
        RecipeError: R10 if there is none or it does not preserve the variance.
    """
    schedule = build.schedule
    if schedule is None or not schedule.variance_preserving:
        message = "the variance that a time goes with is that of a variance-preserving schedule"
        refuse(build, "use", message, "use vp-linear or vp-cosine")
    assert schedule is not None
    return schedule
