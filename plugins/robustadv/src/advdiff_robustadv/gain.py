"""What trains the model of a learned ray: the regulariser as a function of the radius.

The search works in shares of the radius, `delta = r u`, and u depends on r through signs of
gradients alone, which are piecewise constant: with u a constant, the gradient of the regulariser
with respect to r, through delta, the target and the weight, is exact almost everywhere.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

from attrs import frozen
from torch import Tensor

from advdiff_core import (
    Build,
    EpsHat,
    Fault,
    LossTerm,
    Query,
    RecipeError,
    Step,
    View,
    expand,
)
from advdiff_core.interfaces.query import Setup
from advdiff_core.settings import setting, settings
from advdiff_robustadv.learned import RayCodes, RayLearned, radius_of, shape_of
from advdiff_robustadv.terms import base_of, require_denoiser
from advdiff_robustadv.weights import WeightKeys, weight_of

__all__ = ["RayGain", "RayResponse", "Response"]


class Response(NamedTuple):
    """A denoiser at the moved input, as a function of the radius.

    Attributes:
        radius: Radius [B], with a graph to the ray's model.
        away: Squared way of the ray from its start [B], with that graph.
        gap: Change of eps_hat from the unmoved input [B, ...], with that graph.
        shift: Change that would explain the move [B, ...], with that graph.
    """

    radius: Tensor
    away: Tensor
    gap: Tensor
    shift: Tensor


@frozen
class RayResponse(Query[Response]):
    """The change of a denoiser's prediction at a learned ray's delta, with a graph to its radius.

    The denoiser's parameters are frozen in it, and its prediction at the unmoved input is detached:
    the gradient passes through the input to the radius alone. One forward of the denoiser.

    Attributes:
        role: The denoiser.
        view: View moved by `ray-learned`.
    """

    role: str = "student"
    view: str = "adv"
    probing: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """Both views, the clean prediction and what shapes the ray."""
        base = setup.views[self.view].base
        assert base is not None
        keys = keys_of(setup, self.view)
        return (View(base), View(self.view), EpsHat(self.role, base), RayCodes(keys.ray, base))

    def forwards(self, setup: Setup) -> dict[str, int]:
        """One forward of the denoiser."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Response:
        """Move the input by `r u`, `u = delta / r` a constant."""
        keys, base = keys_of(step.setup, self.view), step.setup.views[self.view].base
        assert base is not None
        noised, moved = step.get(View(base)), step.get(View(self.view))
        assert moved.delta is not None
        assert moved.radius is not None
        assert noised.sigma is not None
        shape = shape_of(keys, step.get(RayCodes(keys.ray, base)))
        radius = radius_of(keys, shape, noised).to(moved.radius.dtype)
        used = moved.radius.clamp_min(1e-30)
        delta = expand(radius / used, moved.delta) * moved.delta
        query = EpsHat(self.role, base)
        reference = step.get(query).detach()
        there = step.at(base, noised.x_t + delta.to(noised.x_t.dtype)).get(query)
        return Response(radius, shape.away, there - reference, delta / noised.sigma)


def keys_of(setup: Setup, view: str) -> RayLearned.Settings:
    perturbation = setup.views[view].perturbation
    if not isinstance(perturbation, RayLearned):
        message = f"the view {view!r} is not moved by a learned ray"
        fix = 'write perturb = { use = "ray-learned" } there, or name a view that does'
        raise RecipeError(
            [Fault(code="R10", key=f"views.{view}.perturb", message=message, fix=fix)]
        )
    return perturbation.settings


class RayGain(LossTerm):
    """Trains the model of a `ray-learned`: towards larger or smaller regulariser, near its start.

    `-+ c(r) |eps_hat(x_t + r u) - sg(eps_hat(x_t)) - r u / sigma|^2 + pull |way from the start|^2`,
    mean over elements. The first part is the term `equivariance`, a function of the radius alone:
    the denoiser's weights, its clean prediction and u are constants. With goal "maximise" and a
    player of its own the ray is an adversary; with "minimise" the student's player can train it.
    Costs one forward of the denoiser and one backward towards its input. The design is ours.
    """

    @settings
    class Settings(WeightKeys):
        """Keys of `use = "ray-gain"`."""

        view: str = setting("adv", ref="view", help="the view moved by ray-learned")
        role: str = setting("student", ref="role", help="denoiser that responds")
        goal: Literal["maximise", "minimise"] = setting(
            "maximise", help="make the regulariser large, as an adversary, or small"
        )
        objective: Literal["equivariance", "prediction-gap"] = setting(
            "equivariance", help="what that is: the term's residual, or the change of eps_hat"
        )
        pull: float = setting(
            1.0, ge=0.0, help="pull of omega and gamma to their start, in shares of their ranges"
        )

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        base_of(build, settings.view)
        require_denoiser(build, settings.role)
        self.response = RayResponse(settings.role, settings.view)
        self.moved = View(settings.view)
        self.needs = (self.response, self.moved)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B].

        Raises:
            RecipeError: R10 if the player of this term does not train the ray's model.
        """
        found, noised = step.get(self.response), step.get(self.moved)
        perturbation = step.setup.views[self.settings.view].perturbation
        assert perturbation is not None
        if not found.radius.requires_grad:
            self._refuse(keys_of(step.setup, self.settings.view).ray)
        domain = self.build.data.domain if self.build.data is not None else None
        noised = noised._replace(radius=found.radius)
        weight = weight_of(self.settings, noised, perturbation, domain)
        exact = self.settings.objective == "equivariance"
        residual = found.gap - found.shift if exact else found.gap
        gain = weight * residual.square().flatten(1).mean(1)
        sign = -1.0 if self.settings.goal == "maximise" else 1.0
        return sign * gain + self.settings.pull * found.away

    def _refuse(self, ray: str) -> None:
        message = f"nothing to learn here: the player of this term does not train models.{ray}"
        fix = f'write models = ["{ray}"] for the player that lists it'
        raise RecipeError([Fault(code="R10", key=self.build.path, message=message, fix=fix)])
