"""Laws of training times that a schedule's density cannot say: curricula, and laws that learn."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from advdiff_core.interfaces.module import ModuleComponent

__all__ = ["TimeSampler", "Times"]


class Times(NamedTuple):
    """Training times of a batch.

    Attributes:
        t: Times [B], in the schedule's own range.
        weight: Importance weight of each sample [B], which the core multiplies every term on noised
            views by; None for 1.
    """

    t: Tensor
    weight: Tensor | None = None


class TimeSampler(ModuleComponent):
    """Draws the training times of the noised view, in place of the laws of `schedule.density`.

    State lives in registered buffers: the core saves and resumes it. It never draws numbers itself;
    `u` are (stratified) uniform ones, keyed by seed and step.
    """

    @abstractmethod
    def draw(self, u: Tensor, nimg: int) -> Times:
        """Training times from uniform numbers.

        Args:
            u: Uniform numbers in [0, 1) [B], float64.
            nimg: Images seen before the step; the run's length is `self.build.images`.
        """

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """What a player's objective was, after each of its passes over the batch.

        Args:
            t: Times [B] of the global batch, of all processes, in its order.
            losses: Objective of each sample [B] (terms on noised views, times their weights) before
                the importance weight, without a graph; not checked for NaN.
        """

    def levels(self, nimg: int) -> int | None:
        """Noise levels in use at `nimg` images, for laws that refine a grid; None without one.

        Target networks may forget at a rate that depends on it (`models.<role>.follow`).
        """
        del nimg
        return None
