"""Perturbations of a noised view inside the box of the ray: random, and one-step adversarial."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from advdiff_core import (
    Budget,
    Build,
    Draws,
    EpsHat,
    Noised,
    Perturbation,
    Probe,
    Query,
    SearchCost,
    expand,
)
from advdiff_core.interfaces.requirements import require_noise, require_noised
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_robustadv import rays

__all__ = [
    "OBJECTIVE", "ROLE", "STEPS", "STEP_SCALE", "ClimbingRay", "Objective", "Ray", "RayFGSM",
    "RayRandom",
]  # fmt: skip


class Ray(Perturbation):
    """A Linf box of radius r(t), and a uniform start in it."""

    settings: Any
    source: ClassVar[str] = rays.SOURCE

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.unit = settings.unit
        require_noise(build)

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """Nothing; refuses a view of images, which has no noise level.

        Raises:
            RecipeError: R10 if `base` is a view of images.
        """
        require_noised(self.build, base)
        return ()

    def start(self, noised: Noised, budget: Budget, rng: Draws) -> Tensor:
        """Uniform in the box [B, ...]; in each entry on its own."""
        shape = noised.x_t.shape
        inside = norms.uniform_in_ball(shape, norm="linf", radius=1.0, draws=rng)
        return inside * expand(_tensor(budget.radius), noised.x_t)


class RayRandom(Ray):
    """Random perturbation, uniform in the box of the ray (Robust_ran); no extra pass."""

    @settings
    class Settings(rays.RaySettings):
        """Keys of `use = "ray-random"`."""

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The box [-r(t), r(t)]."""
        return Budget("linf", rays.radius(self.settings, noised, rng), self.settings.unit)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """The random start itself."""
        del probe
        return self.start(noised, budget, rng)


#: Keys of a climbing search, for settings that have different bases.
ROLE = setting("student", ref="role", help="denoiser that is attacked")
STEPS = setting(1, ge=1, le=1000, help="signed gradient steps; the paper takes one")
STEP_SCALE = setting(1.0, gt=0.0, help="length of a step as a share of the radius")
OBJECTIVE = setting("prediction-gap", help="what the attack makes large")
Objective = Literal["prediction-gap", "equivariance-residual"]


class ClimbingRay(Ray):
    """A ray whose search climbs: a random start, then signed gradient steps on the denoiser."""

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at the unmoved input, which the terms share."""
        super().needs(base)
        return (EpsHat(self.settings.role, base),)

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at moved inputs."""
        return (EpsHat(self.settings.role, base),)

    def cost(self) -> SearchCost:
        """One probe and one backward towards the input per step."""
        return SearchCost(self.settings.steps, self.settings.steps)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Signed gradient ascent from a random start, in the box after every step."""
        query = EpsHat(self.settings.role, probe.base)
        reference = probe.step.get(query)
        radius = _tensor(budget.radius)
        step = self.settings.step_scale * expand(radius, noised.x_t)
        delta = self.start(noised, budget, rng)
        for _ in range(self.settings.steps):
            delta = delta.detach().requires_grad_()
            gap = probe.at(delta).get(query) - reference
            if self.settings.objective == "equivariance-residual":
                gap = gap - self._shift(delta, noised)
            # Summed, not averaged: only signs are used, and means underflow first.
            gradient = probe.gradient(gap.square().flatten(1).sum(1), delta)
            ahead = delta.detach() + step * norms.steepest_ascent(gradient, "linf")
            delta = norms.project(ahead, norm="linf", radius=radius)
        return delta

    def _shift(self, delta: Tensor, noised: Noised) -> Tensor:
        assert noised.sigma is not None
        return delta if self.settings.unit == "noise" else delta / noised.sigma


class RayFGSM(ClimbingRay):
    """Random start in the box of the ray, then signed gradient steps on the denoiser (Robust_adv).

    FOUND: one FGSM step from a random start, projected, maximising the prediction gap
    `J = |eps_hat(x_t + delta) - eps_hat(x_t)|^2`. DERIVED: the start cannot be zero, where the
    gradient of J vanishes. UNKNOWN: the step length; `step_scale = 1` is ours. Each step costs one
    forward and one backward towards the input; the clean forward is shared with the terms.
    """

    @settings
    class Settings(rays.RaySettings):
        """Keys of `use = "ray-fgsm"`."""

        role: str = ROLE
        steps: int = STEPS
        step_scale: float = STEP_SCALE
        objective: Objective = OBJECTIVE

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The box [-r(t), r(t)]."""
        return Budget("linf", rays.radius(self.settings, noised, rng), self.settings.unit)


def _tensor(radius: Tensor | float) -> Tensor:
    assert isinstance(radius, Tensor), "the ray's radius is one number per sample"
    return radius
