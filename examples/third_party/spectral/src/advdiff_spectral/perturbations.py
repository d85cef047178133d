"""A gradient step whose size is limited frequency by frequency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_core import (
    Budget,
    Build,
    Draws,
    EpsHat,
    Fault,
    Noised,
    Perturbation,
    Probe,
    Query,
    RecipeError,
    SearchCost,
)
from advdiff_core.settings import setting, settings
from advdiff_core.types import Unit
from advdiff_spectral import fourier

__all__ = ["SpectralFGSM"]


class SpectralFGSM(Perturbation):
    """Random phases, then gradient steps, with bounded amplitude at each frequency of a band.

    Delta is added to eps, and the target follows: the moved noise explains the moved input. At each
    frequency of the band its amplitude is at most `strength` times that of the noise, at others it
    is zero. The core enforces the L2 ball around that set, of radius `strength` times the root of
    the number of frequencies (Parseval); the bound at each frequency is kept here.
    """

    @settings
    class Settings:
        """Keys of `use = "spectral-fgsm"`."""

        strength: float = setting(
            0.3, ge=0.0, help="largest amplitude at a frequency, as a share of the noise there"
        )
        low: float = setting(
            0.0, ge=0.0, le=1.5, unit="Nyquist", help="lowest frequency that is moved"
        )
        high: float = setting(
            1.5, ge=0.0, le=1.5, unit="Nyquist", help="highest one; corners are at sqrt(2)"
        )
        steps: int = setting(1, ge=0, le=1000, help="gradient steps; 0 leaves the random phases")
        step_scale: float = setting(1.0, gt=0.0, help="length of a step as a share of the bound")
        role: str = setting("student", ref="role", help="denoiser that is attacked")

        def __attrs_post_init__(self) -> None:
            """Check the order of the ends.

            Raises:
                ValueError: If the band ends before it begins.
            """
            if self.high < self.low:
                message = f"high: {self.high} must be at least low, {self.low}"
                raise ValueError(message)

    unit: Unit = "noise"
    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        if build.data is not None and not build.data.is_image:
            _refuse(f"{build.path}.use", "the data are points, which have no frequencies",
                    "use a dataset of images")  # fmt: skip
        if build.data is not None and not self._band(build.data.shape).any():
            height, width = build.data.shape[1:]
            band = f"[{settings.low}, {settings.high}]"
            message = f"no frequency of a {height}x{width} image lies in {band}"
            _refuse(f"{build.path}.low", message, "widen the band")

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at the unmoved input, which the terms share.

        Raises:
            RecipeError: R10 if `base` is a view of images, which have no noise.
        """
        view = self.build.views.get(base)
        if view is not None and view.root != "clean":
            key = f"{self.build.path.removesuffix('.perturb')}.from"
            message = f"{base!r} is a view of images, which have no noise to move"
            _refuse(key, message, 'write from = "clean", or a view made from it')
        return (EpsHat(self.settings.role, base),) if self.settings.steps else ()

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at moved inputs."""
        return (EpsHat(self.settings.role, base),) if self.settings.steps else ()

    def cost(self) -> SearchCost:
        """One probe and one backward towards the input per step."""
        return SearchCost(self.settings.steps, self.settings.steps)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The L2 ball around the spectral one."""
        del rng
        return Budget("l2", self.settings.strength * self._width(noised), "noise")

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Random phases, then steps of steepest ascent on the gap between two predictions."""
        inside = self._band(noised.x_t.shape[1:]).to(noised.x_t.device)
        radius = torch.as_tensor(budget.radius, dtype=noised.x_t.dtype, device=noised.x_t.device)
        bound = (radius / self._width(noised)).reshape(-1, 1, 1, 1)
        delta = bound * fourier.ascent(rng.normal(noised.x_t.shape).to(noised.x_t), inside)
        for _ in range(self.settings.steps):
            step = fourier.ascent(self._slope(delta, probe), inside)
            ahead = delta + self.settings.step_scale * bound * step
            delta = fourier.project(ahead, inside, bound)
        return delta

    def _slope(self, delta: Tensor, probe: Probe) -> Tensor:
        """Gradient [B, C, H, W] of the gap to the prediction at the unmoved input."""
        query, leaf = EpsHat(self.settings.role, probe.base), delta.detach().requires_grad_()
        gap = probe.at(leaf).get(query) - probe.step.get(query)
        # Summed, not averaged: a mean over the batch would tie samples to each other.
        return probe.gradient(gap.square().flatten(1).sum(1), leaf)

    def _band(self, shape: tuple[int, ...]) -> Tensor:
        return fourier.band((shape[-2], shape[-1]), self.settings.low, self.settings.high)

    def _width(self, noised: Noised) -> float:
        """L2 norm of an image whose amplitude is 1 at every frequency of the band."""
        count = int(self._band(noised.x_t.shape[1:]).sum()) * noised.x_t.shape[1]
        return float(count**0.5)


def _refuse(key: str, message: str, fix: str) -> None:
    """Refuse a recipe whose parts do not fit.

    Raises:
        RecipeError: Always, R10.
    """
    raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix)])
