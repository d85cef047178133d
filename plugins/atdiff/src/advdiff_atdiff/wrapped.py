"""Samplers around another one, which asks a changed denoiser on its own grid."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from advdiff_core import Build, Denoise, ImageDraws, Sampler, Samples, StepCallback

__all__ = ["Wrapped"]


class Wrapped(Sampler):
    """What corrections of exposure bias share: the key `sampler`, and its loop, unchanged.

    A subclass gives `changed`. Evaluations are those of the other sampler: none is added, and none
    is hidden.
    """

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        inner = build.nested(settings.sampler)
        assert isinstance(inner, Sampler), "the loader looks it up among samplers"
        self.inner = inner

    @abstractmethod
    def changed(self, denoise: Denoise, times: Tensor) -> Denoise:
        """The denoiser that the other sampler asks; `times` [N + 1] are those of its grid."""

    def grid(self) -> Tensor:
        """Times [n + 1] of the other sampler."""
        return self.inner.grid()

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
        """Run the other sampler from `x` [B, ...]; see `Sampler.sample`."""
        times = self.grid() if grid is None else grid
        return self.inner.sample(
            self.changed(denoise, times), x, draws,
            grid=grid, grad_steps=grad_steps, checkpoint=checkpoint, callback=callback,
        )  # fmt: skip
