"""Densities of training times, by inverse distribution functions: stratified in, stratified out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule

__all__ = ["LAWS", "draw_times"]

#: Names of the laws.
LAWS: tuple[str, ...] = ("uniform", "log-normal")


def draw_times(
    schedule: NoiseSchedule,
    u: Tensor,
    *,
    law: str = "uniform",
    mean: float = -1.2,
    std: float = 1.2,
) -> Tensor:
    """Training times [B] from uniform numbers; larger numbers give noisier times.

    "uniform": uniform over the schedule's times. "log-normal": `log(sigma / alpha)` is normal
    (Karras et al., 2022, table 1, P_mean and P_std); what falls outside the schedule's range is put
    at its end.

    Args:
        schedule: The noise schedule; the times of a discrete one are among its training times.
        u: Uniform numbers in [0, 1) [B], float64; stratified ones give stratified times.
        law: Name of the density.
        mean: Mean of `log(sigma / alpha)`, for log-normal.
        std: Standard deviation of `log(sigma / alpha)`, for log-normal.

    Returns:
        Times [B], in the dtype of `u`, within `[t_min, t_max]`.
    """
    if law not in LAWS:
        message = f"unknown density of times {law!r}; wanted one of {', '.join(LAWS)}"
        raise ValueError(message)
    t = schedule.quantile(u) if law == "uniform" else _log_normal(schedule, u, mean, std)
    return t.clamp(schedule.t_min, schedule.t_max)


def _log_normal(schedule: NoiseSchedule, u: Tensor, mean: float, std: float) -> Tensor:
    # u = 0 would be an infinitely small noise.
    inner = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps)
    log_ratio = mean + std * torch.special.ndtri(inner)
    return schedule.snap(schedule.time_of_log_snr(-2 * log_ratio))
