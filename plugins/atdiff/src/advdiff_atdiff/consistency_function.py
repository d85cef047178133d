"""Consistency functions: where the trajectory through `x_t` starts, from a denoiser's prediction.

A consistency function maps every point of one solution of the probability-flow ODE to its point at
the smallest time, `f(x_t, t) = x_(t_min)`, and is written so that `f(x, t_min) = x` whatever the
network says. For a denoiser of any parametrization it is `f = a(t) x_t + b(t) x0_hat`.

With `tau = sigma / alpha` and `z = x_t / alpha` the boundary form of Song et al. (2023, appendix C)
is, FOUND, a function of the raw output F of an EDM network,

    f = c_skip z + c_out F,   c_skip = sd^2 / ((tau - tau_min)^2 + sd^2),
                              c_out = (tau - tau_min) sd / sqrt(tau^2 + sd^2).

DERIVED: as `x0_hat = c_skip_edm z + c_out_edm F`, with `c_skip_edm = sd^2 / (tau^2 + sd^2)` and
`c_out_edm = tau sd / sqrt(tau^2 + sd^2)`, it equals `a z + b x0_hat` where

    b = (tau - tau_min) / tau,   a = c_skip - b c_skip_edm,

which needs no raw output. Multiplied by `alpha(t_min)` it is a point in the units of `x_t`.
"""

from __future__ import annotations

from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from advdiff_core import NoiseSchedule, Prediction, expand
from advdiff_core.settings import setting, settings

__all__ = ["ConsistencyFunction", "FunctionKeys", "boundary_scales", "lcm_scales", "noise_ratio"]

#: Steps that a continuous schedule counts as in the LCM form.
CONTINUOUS_STEPS = 1000


@settings
class FunctionKeys:
    """Keys of a consistency function."""

    function: Literal["boundary", "lcm"] = setting(
        "boundary", help="form of the function: of Song et al. (2023), or of latent models (LCM)"
    )
    sigma_data: float = setting(
        0.5, gt=0.0, help="standard deviation of the data in the function's coefficients"
    )
    timestep_scaling: float = setting(
        10.0, gt=0.0, applies=("function", ("lcm",)),
        help="factor of the timestep, counted from 0 at the smallest time",
    )  # fmt: skip

    def of(self, schedule: NoiseSchedule) -> ConsistencyFunction:
        """The function on a schedule."""
        return ConsistencyFunction(
            schedule, self.function, sigma_data=self.sigma_data, scaling=self.timestep_scaling
        )


def boundary_scales(tau: Tensor, tau_min: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """`(a, b)` of the boundary form `f = a z + b x0_hat`; (1, 0) exactly at `tau_min`.

    Args:
        tau: Noise level sigma / alpha, any shape, at least `tau_min`.
        tau_min: Smallest noise level, same shape, above 0.
        sigma_data: Standard deviation of the data.
    """
    gap = tau - tau_min
    c_skip = sigma_data**2 / (gap.square() + sigma_data**2)
    b = gap / tau
    return c_skip - b * (sigma_data**2 / (tau.square() + sigma_data**2)), b


def lcm_scales(
    index: Tensor, *, sigma_data: float = 0.5, scaling: float = 10.0
) -> tuple[Tensor, Tensor]:
    """`(a, b)` of the form of latent consistency models, `f = a x_t + b x0_hat`; (1, 0) at 0.

    FOUND (Luo et al., 2023, and its released code): `a = sd^2 / ((10 n)^2 + sd^2)` and
    `b = 10 n / sqrt((10 n)^2 + sd^2)` at timestep n; 1 at all times but the first few.

    Args:
        index: Timestep n, any shape, counted from 0.
        sigma_data: Standard deviation of the data.
        scaling: Factor of the timestep.
    """
    scaled = scaling * index
    total = scaled.square() + sigma_data**2
    return sigma_data**2 / total, scaled / total.sqrt()


def noise_ratio(schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """Noise level `tau = sigma / alpha` at times `t` (any shape), float64."""
    t = t.double()
    return schedule.sigma(t) / schedule.alpha(t)


@frozen
class ConsistencyFunction:
    """A consistency function of whatever denoiser, on one schedule.

    Attributes:
        schedule: The noise schedule.
        form: "boundary" or "lcm"; see `boundary_scales` and `lcm_scales`.
        sigma_data: Standard deviation of the data.
        scaling: Factor of the timestep, for lcm.
    """

    schedule: NoiseSchedule = field(repr=False)
    form: str = "boundary"
    sigma_data: float = field(default=0.5, kw_only=True)
    scaling: float = field(default=10.0, kw_only=True)

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`(a, b)` of `f = a x_t + b x0_hat` at times `t` [B], float64; (1, 0) at `t_min`."""
        # What a dtype makes of t_min is the smallest time in it.
        least = torch.full_like(t, self.schedule.t_min)
        a, b = (self._lcm if self.form == "lcm" else self._boundary)(t.double(), least.double())
        first = t <= least
        return torch.where(first, 1.0, a), torch.where(first, 0.0, b)

    def _boundary(self, t: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        tau, tau_min = noise_ratio(self.schedule, t), noise_ratio(self.schedule, least)
        a, b = boundary_scales(tau, tau_min, self.sigma_data)
        end = self.schedule.alpha(least)
        return end * a / self.schedule.alpha(t), end * b

    def _lcm(self, t: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
        share = (t - least) / (self.schedule.t_max - least)
        index = share * ((self.schedule.num_steps or CONTINUOUS_STEPS) - 1)
        return lcm_scales(index, sigma_data=self.sigma_data, scaling=self.scaling)

    @property
    def end(self) -> tuple[float, float]:
        """`(alpha, sigma / alpha)` of what it returns: at `t_min`; without noise for lcm."""
        if self.form == "lcm":
            return 1.0, 0.0
        t_min = torch.tensor(self.schedule.t_min, dtype=torch.float64)
        return float(self.schedule.alpha(t_min)), float(noise_ratio(self.schedule, t_min))

    def __call__(self, prediction: Prediction, t: Tensor) -> Tensor:
        """`f(x_t, t)` [B, ...] of a denoiser's prediction at times `t` [B]."""
        x_t = prediction.x_t
        a, b = (expand(scale.to(x_t.dtype), x_t) for scale in self.scales(t))
        return a * x_t + b * prediction.x0
