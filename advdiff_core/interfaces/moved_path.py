"""Samplers around another one, which move its state between steps: attacks, noise."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.sampler import Denoise, ImageDraws, Sampler, Samples, StepCallback
from advdiff_core.types import Prediction

__all__ = ["MovedPath", "Mover"]


class Mover(Protocol):
    """The moves of one run."""

    @property
    def calls(self) -> int:
        """Evaluations of the denoiser that it made per sample."""

    def moved(self, index: int, x: Tensor) -> Tensor:
        """The state before step `index` [B, ...]; `x` itself where it is not moved."""


class MovedPath(Sampler):
    """A sampler whose state is moved before steps; its own noise stays what it is.

    Args:
        settings: Keys of the moves.
        build: What the component was told.
        sampler: The sampler.
    """

    def __init__(self, settings: Any, build: Build, sampler: Sampler) -> None:
        super().__init__(settings, build)
        self.sampler = sampler

    @abstractmethod
    def mover(self, denoise: Denoise, draws: ImageDraws, times: Tensor) -> Mover | None:
        """What moves the states of a run on the grid `times` [N + 1]; None leaves it as it is."""

    def grid(self) -> Tensor:
        """Times [n + 1] of the sampler."""
        return self.sampler.grid()

    def sample(  # noqa: PLR0913 - the switches a caller may combine.
        self,
        denoise: Denoise,
        x: Tensor,
        draws: ImageDraws,
        *,
        grid: Tensor | None = None,
        grad_steps: tuple[int, ...] | None = None,
        checkpoint: bool = False,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Samples of the moved path from `x` [B, ...]; see `Sampler.sample`."""
        how: dict[str, Any] = {"grid": grid, "grad_steps": grad_steps, "checkpoint": checkpoint}
        mover = self.mover(denoise, draws, self.grid() if grid is None else grid)
        if mover is None:
            return self.sampler.sample(denoise, x, draws, callback=callback, **how)

        def after(index: int, state: Tensor, prediction: Prediction) -> Tensor | None:
            moved = mover.moved(index + 1, state)
            told = callback(index, moved, prediction) if callback is not None else None
            return moved if told is None else told

        found = self.sampler.sample(denoise, mover.moved(0, x), draws, callback=after, **how)
        return Samples(found.x0, found.nfe + mover.calls)
