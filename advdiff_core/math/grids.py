"""Grids of sampling times, as explicit numbers: steps are their consecutive pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule

__all__ = ["LAWS", "sampling_times"]

#: Names of the laws.
LAWS: tuple[str, ...] = ("karras", "exponential", "log-snr", "uniform", "trailing")


def sampling_times(
    schedule: NoiseSchedule, num_steps: int, *, law: str = "karras", rho: float = 7.0
) -> Tensor:
    """Times `t_max = t_0 > ... > t_n = t_zero` of a sampler.

    The network is evaluated at the first n times, which are by law:

    - karras: equal steps of `(sigma / alpha)^(1 / rho)` down to t_min (Karras et al., 2022, eq. 5).
    - exponential: equal steps of `log(sigma / alpha)` down to t_min.
    - log-snr: the same grid by its other name (Lu et al., 2022).
    - uniform: equal steps of t down to t_min.
    - trailing: equal steps of t towards 0, the n-th at `t_max / n` (Lin et al., 2024). On a
      discrete schedule of at least n times these are rounded to training times; the times of the
      other laws fall between training times.

    Args:
        schedule: The noise schedule.
        num_steps: Number of steps n, at least 1.
        law: Name of the law.
        rho: Exponent of karras; larger puts more steps at little noise.

    Returns:
        Times [n + 1], float64, on the CPU, strictly decreasing. A single step starts at t_max.
    """
    if num_steps < 1:
        message = f"a grid of {num_steps} steps; wanted at least 1"
        raise ValueError(message)
    if law not in LAWS:
        message = f"unknown grid law {law!r}; wanted one of {', '.join(LAWS)}"
        raise ValueError(message)
    times = _LAWS[law](schedule, num_steps, rho)
    return torch.cat([times, torch.tensor([schedule.t_zero], dtype=torch.float64)])


def _karras(schedule: NoiseSchedule, count: int, rho: float) -> Tensor:
    low, high = _log_ratios(schedule)
    roots = torch.lerp((high / rho).exp(), (low / rho).exp(), _ramp(count))
    return _at_log_ratio(schedule, rho * roots.log())


def _exponential(schedule: NoiseSchedule, count: int, rho: float) -> Tensor:
    del rho
    low, high = _log_ratios(schedule)
    return _at_log_ratio(schedule, torch.lerp(high, low, _ramp(count)))


def _uniform(schedule: NoiseSchedule, count: int, rho: float) -> Tensor:
    del rho
    return torch.linspace(schedule.t_max, schedule.t_min, count, dtype=torch.float64)


def _trailing(schedule: NoiseSchedule, count: int, rho: float) -> Tensor:
    del rho
    last = max(schedule.t_max / count, schedule.t_min)
    times = torch.linspace(schedule.t_max, last, count, dtype=torch.float64)
    enough = schedule.num_steps is not None and count <= schedule.num_steps
    return schedule.snap(times) if enough else times


_LAWS = {
    "karras": _karras,
    "exponential": _exponential,
    "log-snr": _exponential,
    "uniform": _uniform,
    "trailing": _trailing,
}


def _ramp(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / max(count - 1, 1)


def _log_ratios(schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """`log(sigma / alpha)` at t_min and at t_max, float64."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = (schedule.log_snr(ends) / -2).unbind()
    return low, high


def _at_log_ratio(schedule: NoiseSchedule, log_ratio: Tensor) -> Tensor:
    times = schedule.time_of_log_snr(-2 * log_ratio)
    # What went through a logarithm comes back a rounding away from the ends.
    times[-1], times[0] = schedule.t_min, schedule.t_max
    return times
