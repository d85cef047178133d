"""A law of training times with a curriculum, which also counts what it is told."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core import Build, Times, TimeSampler
from advdiff_core.settings import setting, settings

__all__ = ["ToyDoubling"]


class ToyDoubling(TimeSampler):
    """A grid of times that doubles half-way; noisier times weigh more."""

    @settings
    class Settings:
        """Keys of `use = "toy-doubling"`."""

        levels: int = setting(4, ge=2, help="levels at the start")
        weighted: bool = setting(False, help="give samples an importance weight")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.register_buffer("losses", torch.zeros((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def draw(self, u: Tensor, nimg: int) -> Times:
        """A time of the grid."""
        schedule = self.build.schedule
        assert schedule is not None
        count = self.levels(nimg)
        share = (u * count).floor().clamp(max=count - 1) / (count - 1)
        t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
        return Times(t, 0.5 + share if self.settings.weighted else None)

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Add them up."""
        self.losses += losses.double().nan_to_num(0.0, 0.0, 0.0).sum()
        self.calls += 1

    def levels(self, nimg: int) -> int:
        """Twice as many in the second half."""
        return self.settings.levels * (1 if 2 * nimg < self.build.images else 2)
