"""Grids of sampling times, as explicit numbers: steps are their consecutive pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule

__all__ = ["LAWS", "is_straight", "sampling_times", "shifted"]

#: Names of the laws.
LAWS: tuple[str, ...] = ("karras", "exponential", "log-snr", "uniform", "trailing")


def sampling_times(  # noqa: PLR0913 - what makes a grid.
    schedule: NoiseSchedule,
    num_steps: int,
    *,
    law: str = "karras",
    rho: float = 7.0,
    shift: float = 1.0,
    start: float | None = None,
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
        shift: Factor s of `shifted`, at least 1; above 1 for schedules that `is_straight` alone.
            The law's times are moved by it, and the law begins where that leads to the first time.
        start: First time, above t_min, in place of t_max: for a process that starts in between.

    Returns:
        Times [n + 1], float64, on the CPU, strictly decreasing. A single step begins at the first.
    """
    if num_steps < 1:
        message = f"a grid of {num_steps} steps; wanted at least 1"
        raise ValueError(message)
    if law not in LAWS:
        message = f"unknown grid law {law!r}; wanted one of {', '.join(LAWS)}"
        raise ValueError(message)
    high = schedule.t_max if start is None else start
    if not schedule.t_min < high <= schedule.t_max:
        message = f"a grid from {high:g}; wanted above {schedule.t_min:g}, up to {schedule.t_max:g}"
        raise ValueError(message)
    if shift == 1:
        times = _LAWS[law](schedule, num_steps, rho, high)
    else:
        times = _moved(schedule, num_steps, law, rho, shift, high)
    return torch.cat([times, torch.tensor([schedule.t_zero], dtype=torch.float64)])


def shifted(t: Tensor, shift: float) -> Tensor:
    """Times moved towards noise, `s t / (1 + (s - 1) t)` (Esser et al., 2024, eq. 23), any shape.

    0 and 1 stay. On a schedule that `is_straight`, `sigma / alpha` becomes s times as large, so
    `1 / s` moves times back.

    Args:
        t: Times in [0, 1].
        shift: The factor s, above 0.
    """
    return shift * t / (1 + (shift - 1) * t)


def is_straight(schedule: NoiseSchedule) -> bool:
    """True if `alpha = 1 - t` and `sigma = t`, as `flow` has them."""
    # On the CPU also where networks are built without numbers.
    t = torch.linspace(schedule.t_min, schedule.t_max, 9, dtype=torch.float64, device="cpu")
    same = torch.allclose(schedule.alpha(t), 1 - t) and torch.allclose(schedule.sigma(t), t)
    return same and schedule.num_steps is None


def _moved(  # noqa: PLR0913 - what makes a grid.
    schedule: NoiseSchedule, count: int, law: str, rho: float, shift: float, top: float
) -> Tensor:
    if shift < 1 or not is_straight(schedule):
        message = f"a shift of {shift:g}; wanted at least 1, and alpha = 1 - t with sigma = t"
        raise ValueError(message)
    below = float(shifted(torch.tensor(top, dtype=torch.float64), 1 / shift))
    if below <= schedule.t_min:
        message = f"a shift of {shift:g} moves every time from {schedule.t_min:g} above {top:g}"
        raise ValueError(message)
    times = shifted(_LAWS[law](schedule, count, rho, below), shift)
    # What was moved there and back comes a rounding away.
    times[0] = top
    return times


def _karras(schedule: NoiseSchedule, count: int, rho: float, top: float) -> Tensor:
    low, high = _log_ratios(schedule, top)
    roots = torch.lerp((high / rho).exp(), (low / rho).exp(), _ramp(count))
    return _at_log_ratio(schedule, rho * roots.log(), top)


def _exponential(schedule: NoiseSchedule, count: int, rho: float, top: float) -> Tensor:
    del rho
    low, high = _log_ratios(schedule, top)
    return _at_log_ratio(schedule, torch.lerp(high, low, _ramp(count)), top)


def _uniform(schedule: NoiseSchedule, count: int, rho: float, top: float) -> Tensor:
    del rho
    return torch.linspace(top, schedule.t_min, count, dtype=torch.float64)


def _trailing(schedule: NoiseSchedule, count: int, rho: float, top: float) -> Tensor:
    del rho
    last = max(top / count, schedule.t_min)
    times = torch.linspace(top, last, count, dtype=torch.float64)
    between = (schedule.num_steps or 0) * top / schedule.t_max
    enough = schedule.num_steps is not None and count <= between
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


def _log_ratios(schedule: NoiseSchedule, top: float) -> tuple[Tensor, Tensor]:
    """`log(sigma / alpha)` at t_min and at the first time, float64."""
    ends = torch.tensor([schedule.t_min, top], dtype=torch.float64)
    low, high = (schedule.log_snr(ends) / -2).unbind()
    return low, high


def _at_log_ratio(schedule: NoiseSchedule, log_ratio: Tensor, top: float) -> Tensor:
    times = schedule.time_of_log_snr(-2 * log_ratio)
    # What went through a logarithm comes back a rounding away from the ends.
    times[-1], times[0] = schedule.t_min, top
    return times
