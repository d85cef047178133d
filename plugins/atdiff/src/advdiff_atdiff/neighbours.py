"""A radius that depends on time: as far as neighbouring noise levels of a sampler lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core import NoiseSchedule
from advdiff_core.math.grids import sampling_times

__all__ = ["Neighbours"]


class Neighbours:
    """Root mean square per entry of `x_t - x_s`, where t is the next coarser time after s.

    FOUND in the released code, where nothing reads it: `sqrt(2 - 2 sqrt(ab_t / ab_s))` on the times
    of a sampler of 50 steps. DERIVED: it is the distance of one sample's two levels under the
    forward process, for data of unit variance; on any schedule

        E (x_t - x_s)^2 = m_t + m_s - 2 (alpha_t / alpha_s) m_s,  m = alpha^2 + sigma^2.

    Between the times of the sampler the neighbour lies one step further on the grid; above the
    last step, which has no coarser time, the distance stays that of the last step.

    Args:
        schedule: The noise schedule.
        steps: Steps of the sampler, on the schedule's own grid.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int) -> None:
        self.schedule, self.steps = schedule, steps
        times = sampling_times(schedule, steps, law=schedule.default_grid)
        self._grids: dict[torch.device, Tensor] = {times.device: times.flip(0)}

    def rms(self, t: Tensor) -> Tensor:
        """Distance [B] from the levels at times `t` [B] to the next coarser ones, float64."""
        place = self._place(t.double()).clamp(max=self.steps - 1)
        finer, coarser = self._time(place), self._time(place + 1)
        alpha_s, alpha_t = self.schedule.alpha(finer), self.schedule.alpha(coarser)
        size_s = alpha_s.square() + self.schedule.sigma(finer).square()
        size_t = alpha_t.square() + self.schedule.sigma(coarser).square()
        return (size_t + size_s - 2 * (alpha_t / alpha_s) * size_s).clamp_min(0).sqrt()

    def _grid(self, device: torch.device) -> Tensor:
        if device not in self._grids:
            self._grids[device] = next(iter(self._grids.values())).to(device)
        return self._grids[device]

    def _place(self, t: Tensor) -> Tensor:
        """Where times [B] lie on the grid, counted in steps from its end without noise."""
        grid = self._grid(t.device)
        above = torch.searchsorted(grid, t).clamp(1, self.steps)
        low, high = grid[above - 1], grid[above]
        return above - 1 + (t - low) / (high - low)

    def _time(self, place: Tensor) -> Tensor:
        grid = self._grid(place.device)
        below = place.floor().long().clamp(0, self.steps - 1)
        return torch.lerp(grid[below], grid[below + 1], place - below)
