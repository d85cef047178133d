"""Training times of latent consistency models: a coarse grid on a schedule's discrete times."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_atdiff.consistency_function import FunctionKeys
from advdiff_core import Build, NoiseSchedule, Times, TimeSampler
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["LatentGrid"]


class LatentGrid(TimeSampler):
    """Times of latent consistency models: every k-th of a schedule's discrete times.

    FOUND (Luo et al., 2023, section 4.3, and its released code): of T = 1000 times those numbered
    k - 1, 2k - 1, ..., for k = 20 these are the 50 times of DDIM. One is drawn uniformly, the view
    `clean` is noised there, and the solver goes k times back in one step, from the first one to
    time 0. The term `latent-consistency` and the sampler `consistency` read the grid, and what `f`
    is, from here.
    """

    @settings
    class Settings(FunctionKeys):
        """Keys of `use = "latent-grid"`."""

        function: Literal["boundary", "lcm"] = setting(
            "lcm", help="form of the function: of latent models (LCM), or of Song et al. (2023)"
        )
        skip: int = setting(
            20, ge=1, le=2**20, unit="times", help="times k that the solver goes back in one step"
        )

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.schedule = _discrete(build)
        self.function = settings.of(self.schedule)
        steps = self.schedule.num_steps or 0
        if settings.skip > steps:
            message = f"k = {settings.skip} is more than the {steps} times of the schedule"
            refuse(build, "skip", message, f"write at most {steps}; LCM takes 20 of 1000")

    @property
    def count(self) -> int:
        """Times N on the grid, time 0 not counted."""
        return (self.schedule.num_steps or 0) // self.settings.skip

    def levels(self, nimg: int) -> int:
        """Noise levels in use: always N."""
        del nimg
        return self.count

    def draw(self, u: Tensor, nimg: int) -> Times:
        """Times of the grid [B], float64, each as likely as the others; no weights.

        Args:
            u: Uniform numbers in [0, 1) [B], float64.
            nimg: Images seen before the step.
        """
        del nimg
        place = (u * self.count).floor().clamp(max=self.count - 1)
        return Times(self._time((place + 1) * self.settings.skip - 1))

    def before(self, t: Tensor, nimg: int) -> Tensor:
        """The time k before `t` [B], or time 0; in the dtype of `t`.

        Args:
            t: Times of the grid, in any floating dtype; the nearest one of the schedule counts.
            nimg: Images seen before the step.
        """
        del nimg
        return self._time((self._index(t) - self.settings.skip).clamp(min=0)).to(t.dtype)

    def sampling_times(self, steps: int) -> Tensor:
        """Times [steps + 1], float64, of a sampler; the last one has no noise.

        FOUND (released code): of the falling grid those at `floor(i N / steps)`.

        Args:
            steps: Evaluations of the network, at most N.
        """
        falling = torch.arange(self.count, 0, -1, dtype=torch.float64) * self.settings.skip - 1
        place = (torch.arange(steps) * self.count).div(steps, rounding_mode="floor")
        zero = torch.tensor([self.schedule.t_zero], dtype=torch.float64)
        return torch.cat([self._time(falling[place]), zero])

    def _index(self, t: Tensor) -> Tensor:
        """Number of the schedule's time nearest to `t`, from 0, float64."""
        return ((t.double() - self.schedule.t_min) / self._unit).round()

    def _time(self, index: Tensor) -> Tensor:
        """The schedule's time number `index`, float64."""
        return self.schedule.snap(self.schedule.t_min + index.double() * self._unit)

    @property
    def _unit(self) -> float:
        steps = max((self.schedule.num_steps or 0) - 1, 1)
        return (self.schedule.t_max - self.schedule.t_min) / steps


def _discrete(build: Build) -> NoiseSchedule:
    """The schedule of the recipe.

    Raises:
        RecipeError: R10 if it has no discrete times.
    """
    schedule = build.schedule
    if schedule is None or schedule.num_steps is None:
        message = "a grid of every k-th time needs a schedule with discrete times"
        refuse(build, "use", message, 'use a schedule such as "vp-linear"')
    assert schedule is not None
    return schedule
