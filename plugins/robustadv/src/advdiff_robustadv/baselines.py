"""What adversarial training is compared with: Gaussian noise on the input of the denoiser."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advdiff_core import Budget, Build, Draws, Noised, Perturbation, Probe, Query, expand
from advdiff_core.interfaces.requirements import require_noise, require_noised
from advdiff_core.settings import setting, settings
from advdiff_robustadv import rays

__all__ = ["GaussianSmoothing", "InputPerturbation"]

#: A budget bounds what it allows; a normal number lies beyond 6 once in 500 million.
CUT = 6.0


class _Gaussian(Perturbation):
    """Normal noise of a standard deviation per sample, cut in each entry at `CUT` of them."""

    #: Radius over the standard deviation of delta.
    per_std: ClassVar[float] = CUT

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """Nothing; refuses a view of images, which has no noise level.

        Raises:
            RecipeError: R10 if `base` is a view of images.
        """
        require_noised(self.build, base)
        return ()

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """The noise [B, ...]."""
        del probe
        assert isinstance(budget.radius, Tensor), "one number per sample"
        noise = rng.normal(noised.x_t.shape).to(noised.x_t.dtype)
        return noise * expand(budget.radius / CUT, noised.x_t)


class InputPerturbation(_Gaussian):
    """DDPM-IP: the network sees `x_t` made with `eps + gamma xi`, and has to predict eps.

    Ning et al. (2023, algorithm 1), "Input Perturbation Reduces Exposure Bias in Diffusion Models"
    (arXiv 2301.11706), with their gamma = 0.1: training inputs are as wrong as those of a sampler
    that has made a prediction error. Name its view in the term `denoise`; one forward a step, as
    without it.
    """

    @settings
    class Settings:
        """Keys of `use = "input-perturbation"`."""

        gamma: float = setting(0.1, ge=0.0, help="standard deviation of the noise added to eps")

    settings: Settings
    follows = False
    unit: Literal["noise"] = "noise"

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """A box that the noise hardly ever leaves."""
        del rng
        size = noised.x_t.shape[0]
        return Budget("linf", noised.x_t.new_full((size,), CUT * self.settings.gamma), "noise")


class GaussianSmoothing(_Gaussian):
    """Normal noise on the input of the denoiser, for comparison with a box or an attack in it.

    Ours, after randomized smoothing (Cohen et al., 2019): `delta ~ N(0, std^2)` is added to `x_t`
    (unit "image") or to eps. Left out, `std` is `r(t) / sqrt(3)`, that of `ray-random` with the
    same keys. With the term `equivariance` on its view a denoiser becomes consistent with its own
    smoothed self, `E eps_hat(x_t + delta) - delta / sigma`; with `denoise` alone it is data
    augmentation.
    """

    @settings
    class Settings(rays.RaySettings):
        """Keys of `use = "gaussian-smoothing"`."""

        std: float | None = setting(
            None, ge=0.0, help="standard deviation at every t; r(t) / sqrt(3) if left out"
        )
        target: Literal["follows", "stays"] = setting(
            "follows", help="whether the moved noise is the target, or eps as it was"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.unit, self.follows = settings.unit, settings.target == "follows"
        require_noise(build)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """A box that the noise hardly ever leaves."""
        given = self.settings.std
        if given is None:
            std = rays.radius(self.settings, noised, rng) / rays.SQRT3
        else:
            std = torch.full_like(rays.noise_share(noised), given)
        return Budget("linf", CUT * std, self.settings.unit)
