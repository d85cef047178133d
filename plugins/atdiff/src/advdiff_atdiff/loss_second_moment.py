"""Training times drawn by how large their losses were."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from advdiff_core import Build, NoiseSchedule, Times, TimeSampler
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["LossSecondMoment"]


class LossSecondMoment(TimeSampler):
    """Draws each training time in proportion to the root of its mean squared loss (improved DDPM).

    Nichol and Dhariwal (2021, eq. 18): over the last `history` losses of each of the schedule's T
    times, mixed with `uniform` of the uniform law. A sample's loss is weighted by
    `1 / (T p(t))`, which keeps the expected gradient that of uniform times. Until each time has
    seen `history` losses times are uniform. FOUND: 10 losses, a share of 0.001 (the paper's code);
    losses that are no numbers are left out (AT_Diff's code); with K passes over a batch each pass
    adds an entry per sample, adversarial losses included (AT_Diff's code).

    Discrete schedules alone: a continuous time never comes back, so that it has no history.
    """

    source: ClassVar[str] = "Nichol and Dhariwal (2021, arXiv 2102.09672, eq. 18)"

    @settings
    class Settings:
        """Keys of `use = "loss-second-moment"`."""

        history: int = setting(10, ge=1, le=1000, help="losses kept for each time")
        uniform: float = setting(0.001, gt=0.0, le=1.0, help="share of uniform times")

    settings: Settings
    #: The last losses of each time in a ring [T + 1, history]; the last row is never read.
    losses: Tensor
    #: Losses seen of each time [T + 1].
    seen: Tensor

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.schedule, self.count = _discrete(build)
        self.register_buffer("losses", torch.zeros(self.count + 1, settings.history))
        self.register_buffer("seen", torch.zeros(self.count + 1, dtype=torch.int64))

    def density(self) -> Tensor:
        """Probability of each of the schedule's times over the uniform one [T], float64."""
        moment = self.losses[:-1].double().square().mean(dim=1).sqrt()
        mean = moment.mean()
        known = (self.seen[:-1] >= self.settings.history).all() & (mean > 0)
        share = self.settings.uniform
        return torch.where(known, (1 - share) * moment / mean + share, 1.0)

    def draw(self, u: Tensor, nimg: int) -> Times:
        """Times [B] by the inverse of their distribution function, with importance weights.

        Args:
            u: Uniform numbers in [0, 1) [B], float64.
            nimg: Images seen, which do not matter.
        """
        del nimg
        density = self.density().to(u.device)
        reached = density.cumsum(0) / self.count
        index = torch.searchsorted(reached, u.contiguous(), right=True)
        # The last sum may round to a little below 1.
        index = index.clamp_max(self.count - 1)
        t = self.schedule.quantile((index.double() + 0.5) / self.count)
        return Times(t, 1 / density[index])

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Keep the losses [B] of times `t` [B], in their order; those that are no numbers are not.

        Nothing waits for the device: what is not kept goes to the row that is never read.
        """
        index = torch.where(losses.isfinite(), self._index(t), self.count).to(self.seen.device)
        values = losses.to(self.losses)
        rank, total = _ranks(index)
        late = rank >= total - self.settings.history
        place = torch.where(late, (self.seen[index] + rank) % self.settings.history, 0)
        self.losses[torch.where(late, index, self.count), place] = values
        self.losses[-1] = 0
        self.seen.index_add_(0, index, torch.ones_like(index))

    def _index(self, t: Tensor) -> Tensor:
        """Number of each time [B], from 0."""
        low, high = self.schedule.t_min, self.schedule.t_max
        share = (t.double() - low) / (high - low)
        return (share * (self.count - 1)).round().long().clamp(0, self.count - 1)


def _ranks(index: Tensor) -> tuple[Tensor, Tensor]:
    """For each entry of `index` [B]: how many equal ones come before it, and how many there are."""
    order = index.argsort(stable=True)
    rising = index[order]
    first = torch.searchsorted(rising, rising)
    after = torch.searchsorted(rising, rising, right=True)
    rank, total = torch.empty_like(index), torch.empty_like(index)
    rank[order] = torch.arange(len(index), device=index.device) - first
    total[order] = after - first
    return rank, total


def _discrete(build: Build) -> tuple[NoiseSchedule, int]:
    """The schedule and the number of its training times.

    Raises:
        RecipeError: R10 if there is no schedule or it is continuous.
    """
    schedule = build.schedule
    if schedule is None or not schedule.num_steps:
        message = "a continuous time never comes back, and has no history of losses"
        refuse(build, "use", message, "use vp-linear or vp-cosine with num_steps above 0")
    assert schedule is not None
    assert schedule.num_steps is not None
    return schedule, schedule.num_steps
