"""A ray whose exponent (and bias) a network predicts for each sample.

`r = s(t)^omega + gamma` with omega and gamma from a model role, inside bounds. `gain` trains it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

from attrs import frozen
from torch import Tensor

from advdiff_core import (
    Budget,
    ContractError,
    Draws,
    Fault,
    Noised,
    Probe,
    Query,
    RecipeError,
    Step,
    View,
)
from advdiff_core.interfaces.query import Setup
from advdiff_core.settings import setting, settings
from advdiff_robustadv import rays
from advdiff_robustadv.perturbations import (
    OBJECTIVE,
    ROLE,
    STEP_SCALE,
    STEPS,
    ClimbingRay,
    Objective,
)

__all__ = ["LearnedKeys", "RayCodes", "RayLearned", "Shape", "radius_of", "shape_of"]


@settings
class LearnedKeys:
    """Keys of a learned radius."""

    ray: str = setting("ray", ref="role", help="model that shapes the ray, such as ray-head")
    omega: float = setting(2.0, gt=0.0, help="exponent of the noise share s(t) to start from")
    omega_min: float = setting(1.0, gt=0.0, help="smallest exponent, of the largest radius")
    omega_max: float = setting(4.0, gt=0.0, help="largest exponent")
    gamma: float = setting(8 / 255, ge=0.0, help="bias, which remains near t = 0, to start from")
    gamma_min: float | None = setting(
        None, ge=0.0, help="smallest bias; gamma is fixed if left out"
    )
    gamma_max: float | None = setting(None, ge=0.0, help="largest bias; gamma is fixed if left out")
    unit: Literal["image", "noise"] = setting(
        "image", help="add delta to x_t as it is, or to eps, which moves x_t by sigma delta"
    )
    relative: bool = rays.RELATIVE

    def __attrs_post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: If a start is not between its bounds, or one bound of gamma is missing.
        """
        if not self.omega_min < self.omega < self.omega_max:
            message = (
                f"omega: {self.omega} must lie between omega_min, {self.omega_min}, and "
                f"omega_max, {self.omega_max}"
            )
            raise ValueError(message)
        if (self.gamma_min is None) != (self.gamma_max is None):
            missing = "gamma_min" if self.gamma_min is None else "gamma_max"
            message = f"{missing}: write both bounds of gamma, or none"
            raise ValueError(message)
        low, high = self.gamma_min, self.gamma_max
        if low is not None and high is not None and not low < self.gamma < high:
            message = (
                f"gamma: {self.gamma} must lie between gamma_min, {low}, and gamma_max, {high}"
            )
            raise ValueError(message)


class Shape(NamedTuple):
    """Form of the ray of each sample.

    Attributes:
        omega: Exponents [B].
        gamma: Biases [B].
        away: How far both are from where they started, squared, as shares of their ranges [B].
    """

    omega: Tensor
    gamma: Tensor
    away: Tensor


def shape_of(keys: LearnedKeys, codes: Tensor) -> Shape:
    """Exponent and bias inside their bounds.

    Args:
        keys: Starts and bounds.
        codes: Raw numbers of the network [B, 2]; zeros give the starts.

    Raises:
        ContractError: If the network returns another shape.
    """
    if codes.dim() != 2 or codes.shape[1] != 2:
        message = f"the ray's model returned shape {list(codes.shape)}, wanted two numbers [B, 2]"
        raise ContractError(message, where=f"models.{keys.ray}", fix='write use = "ray-head"')
    omega, away = _between(codes[:, 0], keys.omega_min, keys.omega, keys.omega_max)
    if keys.gamma_min is None or keys.gamma_max is None:
        return Shape(omega, codes.new_full((len(codes),), keys.gamma), away)
    gamma, further = _between(codes[:, 1], keys.gamma_min, keys.gamma, keys.gamma_max)
    return Shape(omega, gamma, away + further)


def _between(raw: Tensor, low: float, start: float, high: float) -> tuple[Tensor, Tensor]:
    """A number in [low, high] that is `start` at 0, and its squared way from there [B]."""
    share = (start - low) / (high - low)
    found = (raw + math.log(share / (1 - share))).sigmoid()
    # The product may round to just above the bound.
    return (low + (high - low) * found).clamp(low, high), (found - share).square()


def radius_of(keys: LearnedKeys, shape: Shape, noised: Noised) -> Tensor:
    """Radius r = s(t)^omega + gamma of each sample [B], in the perturbation's unit."""
    found = rays.noise_share(noised) ** shape.omega + shape.gamma
    return found * rays.size_of(noised) if keys.relative else found


@frozen
class RayCodes(Query[Tensor]):
    """Raw output [B, 2] of a model that shapes rays, on a noised view.

    Attributes:
        role: Model role.
        view: View it looks at: the one that is moved.
    """

    role: str = "ray"
    view: str = "clean"

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view."""
        del setup
        return (View(self.view),)

    def forwards(self, setup: Setup) -> dict[str, int]:
        """One forward of the role."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Show it the sample and its share of noise, on [0, 1000]."""
        noised = step.get(View(self.view))
        level = 1000 * rays.noise_share(noised)
        return step.network(self.role).classify(noised.x_t, c_noise=level).value


class RayLearned(ClimbingRay):
    """As `ray-fgsm`, with an exponent (and a bias) that a model role predicts for each sample.

    An open question of the paper, answered in a way of ours. The role, of kind backbone with
    `parametrization = "none"`, is trained by whichever player lists it, on the term `ray-gain`.
    """

    @settings
    class Settings(LearnedKeys):
        """Keys of `use = "ray-learned"`."""

        role: str = ROLE
        steps: int = STEPS
        step_scale: float = STEP_SCALE
        objective: Objective = OBJECTIVE

    settings: Settings
    source: ClassVar[str] = f"ours, after {rays.SOURCE}"

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The clean prediction, and what shapes the ray.

        Raises:
            RecipeError: R10 if the ray's model is a denoiser or no backbone.
        """
        model = self.build.models.get(self.settings.ray)
        if model is not None and (model.kind, model.parametrization) != ("backbone", "none"):
            message = f"model {self.settings.ray!r} shapes no ray: it is a " + (
                model.kind if model.kind != "backbone" else "denoiser"
            )
            fix = 'name a model with use = "ray-head" and parametrization = "none"'
            key = f"{self.build.path}.ray"
            raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix)])
        return (*super().needs(base), RayCodes(self.settings.ray, base))

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The box of the ray it starts from; `budget_at` is the one that is used."""
        del rng
        start = shape_of(self.settings, noised.x_t.new_zeros(noised.x_t.shape[0], 2))
        return Budget("linf", radius_of(self.settings, start, noised), self.unit)

    def budget_at(self, noised: Noised, probe: Probe, rng: Draws) -> Budget:
        """The box of the ray that the model shapes."""
        del rng
        codes = probe.step.get(RayCodes(self.settings.ray, probe.base))
        shape = shape_of(self.settings, codes)
        return Budget("linf", radius_of(self.settings, shape, noised), self.unit)
