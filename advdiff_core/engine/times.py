"""What a law of training times gets to see, and the weights it gives to samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from advdiff_core.engine.distributed import World
from advdiff_core.interfaces.query import Query
from advdiff_core.interfaces.time_sampler import TimeSampler
from advdiff_core.step.queries import DrawnTimes
from advdiff_core.step.step import TrainStep

__all__ = ["TimesWatch"]


class TimesWatch:
    """Weights the losses of one player's turn, and reports them to the law after each pass.

    Args:
        times: The law; None for those of the core, which neither weight nor learn.
    """

    def __init__(self, times: TimeSampler | None) -> None:
        self.times = times
        self._seen: dict[int, tuple[TrainStep, Tensor]] = {}

    def weighted(
        self, needs: Iterable[Query[Any]], loss: Tensor, factor: float, step: TrainStep
    ) -> Tensor:
        """The loss [B] of a term times the importance weights, if it depends on the times.

        Args:
            needs: What the term reads.
            loss: Its loss of each sample [B].
            factor: Its weight in the player's objective.
            step: The micro-batch.
        """
        if self.times is None or not step.plan.timed.intersection(needs):
            return loss
        part = factor * loss.detach()
        _, before = self._seen.get(id(step), (step, 0.0))
        self._seen[id(step)] = (step, before + part)
        weight = step.get(DrawnTimes()).weight
        return loss if weight is None else weight.to(loss.dtype) * loss

    def forget(self) -> None:
        """End a pass that moves no weights: the law hears of the next one."""
        self._seen = {}

    def report(self, world: World, batch: int) -> None:
        """End a pass over the micro-batches: tell the law of the global batch."""
        if self.times is None or not self._seen:
            return
        times = torch.cat([step.get(DrawnTimes()).t for step, _ in self._seen.values()])
        losses = torch.cat([loss for _, loss in self._seen.values()])
        self._seen = {}
        with torch.no_grad():
            self.times.observe(world.rows(times, batch), world.rows(losses, batch))
