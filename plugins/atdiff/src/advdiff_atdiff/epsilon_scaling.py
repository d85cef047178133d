"""Epsilon scaling: predicted noise divided by a factor a little above 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from advdiff_atdiff.wrapped import Wrapped
from advdiff_core import Build, ContractError, Denoise, Prediction, Spec, expand
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["EpsilonScaling", "place_on_grid"]


class EpsilonScaling(Wrapped):
    """Another sampler that divides the predicted noise by `lambda = scale + slope * i` (ADM-ES).

    Ning et al. (2024, "Elucidating the Exposure Bias in Diffusion Models"): a network in sampling
    predicts noise of too large a norm, since its inputs drifted; dividing it brings the path back.
    i counts the steps that are left: 0 at the last one. FOUND in the paper's code: i is the index
    of the respaced chain, and clipping of x0 comes after the division. FOUND values: 1.017 for ADM
    on CIFAR-10, 1.006 on ImageNet 64 (uniform, 20 to 100 steps); 1.0 with slope 0.0025 for 20
    steps on CIFAR-10. They belong to these networks: another one wants a search of its own.

    Where the signal all but vanishes, as at the end of vp-cosine, a scaled estimate of x0 is far
    out of range: give the other sampler `clip_x0 = true`, as the paper's code does.

    With `scale = 1` and `slope = 0` samples are those of the other sampler, bit for bit. A solver
    that evaluates between times of the grid gets a factor in between.
    """

    source: ClassVar[str] = "Ning et al. (2024, arXiv 2308.15321, section 5)"

    @settings
    class Settings:
        """Keys of `use = "epsilon-scaling"`."""

        sampler: Spec = setting(kind="sampler", help="the sampler whose predictions are scaled")
        scale: float = setting(1.017, gt=0.0, help="what predicted noise is divided by (b)")
        slope: float = setting(
            0.0, help="added to it for each step that is left (k); 0: the same at every step"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        least = self._least(len(self.grid()) - 1)
        if least <= 0:
            message = f"the factor falls to {least:g} over {len(self.grid()) - 1} steps"
            refuse(build, "slope", message, "choose slope and scale that keep it above 0")

    def _least(self, steps: int) -> float:
        keys = self.settings
        return min(keys.scale, keys.scale + keys.slope * (steps - 1))

    def factor(self, t: Tensor, times: Tensor) -> Tensor:
        """What the noise predicted at times `t` (any shape) is divided by; float64.

        Args:
            t: Times.
            times: Grid [n + 1], falling.

        Raises:
            ContractError: If the factor of a step of the grid is not positive.
        """
        steps = len(times) - 1
        if self._least(steps) <= 0:
            message = f"the factor falls to {self._least(steps):g} over {steps} steps"
            fix = "choose slope and scale that keep it above 0"
            raise ContractError(message, where=self.build.path, fix=fix)
        left = steps - 1 - place_on_grid(t, times)
        return self.settings.scale + self.settings.slope * left.clamp_min(0)

    def changed(self, denoise: Denoise, times: Tensor) -> Denoise:
        """The denoiser with scaled predictions; `times` [N + 1] falling."""
        if self.settings.scale == 1 and self.settings.slope == 0:
            return denoise

        def scaled(x_t: Tensor, t: Tensor) -> Prediction:
            prediction = denoise(x_t, t)
            eps = prediction.eps
            factor = expand(self.factor(t, times), eps).to(eps)
            return prediction._replace(kind="eps", value=eps / factor)

        return scaled

    def linear_step(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(a, b)` of the other sampler, for the noise as the network predicts it.

        Args:
            t: Times of any shape.
            t_next: Smaller times, same shape.

        Raises:
            ContractError: If the other sampler's step is not linear in one prediction.
        """
        a, b = self.inner.linear_step(t, t_next)
        return a, b / self.factor(t, self.grid()).to(b)


def place_on_grid(t: Tensor, times: Tensor) -> Tensor:
    """Index of times `t` (any shape) on a falling grid [n + 1], fractional in between; float64.

    Times beyond an end are at that end.
    """
    rising = times.flip(0).to(t.device, torch.float64)
    wanted = t.double().clamp(rising[0], rising[-1])
    above = torch.searchsorted(rising, wanted.contiguous()).clamp(1, len(rising) - 1)
    low, high = rising[above - 1], rising[above]
    return (len(rising) - above) - (wanted - low) / (high - low)
