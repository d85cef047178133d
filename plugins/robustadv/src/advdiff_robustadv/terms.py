"""Regularisers that compare a denoiser's predictions on a perturbed view and on its base view."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor

from advdiff_core import (
    Build,
    Delta,
    EpsHat,
    Fault,
    LossTerm,
    Noised,
    RecipeError,
    Step,
    View,
)
from advdiff_core.interfaces.requirements import require_noise
from advdiff_core.settings import setting, settings
from advdiff_robustadv import rays
from advdiff_robustadv.weights import WeightKeys, weight_of

__all__ = ["Equivariance", "Invariance", "base_of", "require_denoiser"]


@settings
class _Keys(WeightKeys):
    """Keys common to both regularisers."""

    view: str = setting("adv", ref="view", help="the perturbed view")
    role: str = setting("student", ref="role", help="denoiser that is trained")
    detach_reference: bool = setting(
        False, help="no gradient through the prediction on the unperturbed view"
    )


class _Regulariser(LossTerm):
    """Mean over elements of `c(t) |eps_hat(x_t + delta) - eps_hat(x_t) - shift|^2`."""

    settings: Any
    source: ClassVar[str] = rays.SOURCE

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        base = base_of(build, settings.view)
        require_denoiser(build, settings.role)
        require_noise(build)
        self.perturbed = EpsHat(settings.role, settings.view)
        self.reference = EpsHat(settings.role, base)
        self.noised, self.delta = View(settings.view), Delta(settings.view)
        self.needs = (self.perturbed, self.reference, self.noised, self.delta)

    @abstractmethod
    def shift(self, delta: Tensor, noised: Noised) -> Tensor | float:
        """How far the prediction should move [B, ...] when the input moves by `delta` [B, ...]."""

    def forward(self, step: Step) -> Tensor:
        """The weighted residual of each sample [B]."""
        reference, noised = step.get(self.reference), step.get(self.noised)
        reference = reference.detach() if self.settings.detach_reference else reference
        shift = self.shift(step.get(self.delta), noised)
        residual = step.get(self.perturbed) - reference - shift
        loss = residual.square().flatten(1).mean(1)
        return self._weight(step, noised).to(loss.dtype) * loss

    def _weight(self, step: Step, noised: Noised) -> Tensor:
        perturbation = step.setup.views[self.settings.view].perturbation
        assert perturbation is not None
        domain = self.build.data.domain if self.build.data is not None else None
        return weight_of(self.settings, noised, perturbation, domain)


class Equivariance(_Regulariser):
    """Moving the input by delta should move the predicted noise by delta / sigma: x0_hat stays.

    FOUND: the second term of the paper's loss, with the model's own clean prediction as reference.
    Whether that is detached is UNKNOWN. `shift = "literal"` moves the prediction by delta itself,
    which summaries of the paper print, and which moves x0_hat: an ablation.
    """

    @settings
    class Settings(_Keys):
        """Keys of `use = "equivariance"`."""

        shift: Literal["exact", "literal"] = setting(
            "exact", help="move the prediction by delta / sigma, which keeps x0_hat; or by delta"
        )

    def shift(self, delta: Tensor, noised: Noised) -> Tensor | float:
        """The move of the noise that explains the move of the input [B, ...]."""
        assert noised.sigma is not None
        return delta / noised.sigma if self.settings.shift == "exact" else delta


class Invariance(_Regulariser):
    """The prediction should not move with the input: the classifier's rule, wrong for a denoiser.

    FOUND: the failing ablation of the paper; x0_hat is sent away by delta / alpha.
    """

    @settings
    class Settings(_Keys):
        """Keys of `use = "invariance"`."""

    def shift(self, delta: Tensor, noised: Noised) -> Tensor | float:
        """Nothing [B, ...]."""
        del delta, noised
        return 0.0


def base_of(build: Build, view: str) -> str:
    """The view below a perturbed one.

    Raises:
        RecipeError: R10 if there is none, or if it is a view of images.
    """
    info = build.views.get(view)
    if info is None or info.base is None or info.root != "clean":
        found = [name for name, one in build.views.items() if one.base and one.root == "clean"]
        message = f"{view!r} is no perturbed view of the noised sample; the recipe has " + (
            ", ".join(found) or "none"
        )
        fix = f'declare [views.{view}] with from = "clean" and a perturbation'
        raise RecipeError([Fault(code="R10", key=f"{build.path}.view", message=message, fix=fix)])
    return info.base


def require_denoiser(build: Build, role: str) -> None:
    """Refuse a role that predicts no noise.

    Raises:
        RecipeError: R10.
    """
    model = build.models.get(role)
    if model is not None and model.parametrization == "none":
        message = f"model {role!r} is no denoiser"
        fix = "name a backbone with a parametrization"
        raise RecipeError([Fault(code="R10", key=f"{build.path}.role", message=message, fix=fix)])
