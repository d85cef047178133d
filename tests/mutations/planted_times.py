"""Mistakes in laws of training times."""

from __future__ import annotations

import torch
from planted import planted

from advdiff_core import Times, TimeSampler


class Healthy(TimeSampler):
    """Prefers times of large losses, on a grid that doubles; healthy."""

    def __init__(self, settings, build):
        """A mean loss."""
        super().__init__(settings, build)
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def power(self):
        """What numbers are raised to: 1 at first, less once losses were seen."""
        return 1 / (1 + self.mean.clamp(0, 1))

    def draw(self, u, nimg):
        """A power of the number."""
        schedule, power = self.build.schedule, self.power()
        share = u**power
        t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
        weight = power * (u + 1e-9) ** (power - 1)
        return Times(t.clamp(schedule.t_min, schedule.t_max), weight)

    def observe(self, t, losses):
        """Follow the mean of what is finite."""
        fine = losses[losses.isfinite()].double()
        if len(fine):
            self.mean.lerp_(fine.mean(), 0.1)

    def levels(self, nimg):
        """Ten, then twenty."""
        return 10 if 2 * nimg < self.build.images else 20


@planted("times-in-range", "times from", "clamp")
class Beyond(Healthy):
    """Goes past the noisiest time."""

    def draw(self, u, nimg):
        """Too far."""
        found = super().draw(u, nimg)
        return found._replace(t=1.2 * found.t)


@planted("times-in-range", "importance weights", "density")
class Weightless(Healthy):
    """Weighs a sample with nothing."""

    def draw(self, u, nimg):
        """The first weighs nothing."""
        found = super().draw(u, nimg)
        return found._replace(weight=found.weight * (u > u.min()))


@planted("follows-its-numbers", "times drawn again", "draw no numbers")
class Restless(Healthy):
    """Counts its calls."""

    def draw(self, u, nimg):
        """Other times each call."""
        self.turns = getattr(self, "turns", 0) + 1
        return super().draw((u + 0.01 * self.turns) % 1, nimg)


@planted("each-number-on-its-own", "times of a part", "quantile")
class Ranked(Healthy):
    """Ranks the batch."""

    def draw(self, u, nimg):
        """Times by rank."""
        ranks = u.argsort().argsort().double() / len(u)
        return super().draw(ranks, nimg)


@planted("state-is-all", "saved and loaded", "buffers")
class Forgetful(Healthy):
    """Keeps what it learns in an attribute."""

    def __init__(self, settings, build):
        """No buffer."""
        super().__init__(settings, build)
        del self.mean
        self.mean = torch.zeros((), dtype=torch.float64)


@planted("survives-bad-losses", "after a loss of NaN", "leave such losses out")
class Trusting(Healthy):
    """Averages everything."""

    def observe(self, t, losses):
        """NaN and all."""
        self.mean.lerp_(losses.double().mean(), 0.1)


@planted("levels-only-rise", "levels", "grow")
class Coarsening(Healthy):
    """Starts fine and ends coarse."""

    def levels(self, nimg):
        """Fewer."""
        return 20 if 2 * nimg < self.build.images else 10
