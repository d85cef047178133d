"""The hybrid loss of improved DDPM: a squared error, and the bound that trains a variance head."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advdiff_atdiff import variational
from advdiff_core import (
    Build,
    ContractError,
    Domain,
    Forward,
    LossTerm,
    Noised,
    Prediction,
    Step,
    View,
    expand,
)
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings
from advdiff_core.types import PredictionKind

__all__ = ["Hybrid"]

HEAD = "set learn_sigma = true of the network"


class Hybrid(LossTerm):
    """Squared error of a denoiser, and the variational bound for its variance: L_hybrid.

    Nichol and Dhariwal (2021, eq. 15 and 16), as ADM and AT_Diff train: mean over entries of the
    squared error, plus `vb_weight T` times the bound's term of the time t in bits per entry, where
    T is the number of training times (FOUND: the released code's `vb * T / 1000`). The network's
    variance head says where in the logarithm the variance lies, -1 at the posterior's, 1 at the
    forward step's. In the bound the prediction is a constant: it trains the head alone. At the
    first time it is the likelihood of the data: of the levels of images (of their density where
    data have no range, DERIVED).

    Both posteriors are those at the input that the target explains, with the original x0. On a
    perturbed view (FOUND in the released code): with a moved target that is `x_t + delta`, and the
    ascent goes through it if it goes through the target (`ascent = "full"`), else it is a constant;
    with a fixed target it is the unmoved `x_t`.

    Discrete variance-preserving schedules alone.
    """

    source: ClassVar[str] = "Nichol and Dhariwal (2021, arXiv 2102.09672, eq. 15 and 16)"

    @settings
    class Settings:
        """Keys of `use = "hybrid"`."""

        role: str = setting("student", ref="role", help="denoiser that is trained")
        view: str = setting("clean", ref="view", help="view it looks at")
        space: Literal["auto", "eps", "x0", "v", "flow"] = setting(
            "auto", help="what the squared error compares; auto is what the model predicts"
        )
        vb_weight: float = setting(
            0.001, ge=0.0, help="weight of the bound (lambda); times the number of training times"
        )
        levels: int = setting(
            256, ge=2, help="levels of a value in images, for the likelihood at the first time"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        _check(settings, build)
        self.domain = _domain(build)
        self.forward_query = Forward(settings.role, settings.view)
        self.noised = View(settings.view)
        self.needs = (self.forward_query, self.noised)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        prediction, noised = step.get(self.forward_query), step.get(self.noised)
        keys = self.settings
        space: PredictionKind = prediction.kind if keys.space == "auto" else keys.space
        error = prediction.to(space) - noised.truth(space)
        assert self.build.schedule is not None
        weight = keys.vb_weight * (self.build.schedule.num_steps or 0)
        return error.square().flatten(1).mean(1) + weight * self.bound(prediction, noised)

    def bound(self, prediction: Prediction, noised: Noised) -> Tensor:
        """The bound's term of each sample's time, in bits per entry [B].

        Raises:
            ContractError: If the network gave no variance.
        """
        schedule, head = self.build.schedule, prediction.variance
        assert schedule is not None, "checked when it was built"
        assert noised.t is not None, "a view of noised samples"
        if head is None:
            message = f"model {self.settings.role!r} gave no variance"
            raise ContractError(message, where=self.build.path, fix=HEAD)
        links = variational.links(schedule, noised.t)
        error = noised.x0 - _estimate(prediction, noised)
        excess = (head + 1) / 2 * expand(links.log_range, head).to(head)
        later = variational.kl_bits(error, excess, links.precision)
        log_variance = excess + expand(links.log_variance, head).to(head)
        bits = torch.where(
            expand(links.first, head), self._data_bits(noised.x0, error, log_variance), later
        )
        return bits.flatten(1).mean(1)

    def _data_bits(self, x0: Tensor, error: Tensor, log_variance: Tensor) -> Tensor:
        if self.domain is None:
            return variational.density_bits(error, log_variance)
        return variational.level_bits(
            x0, x0 - error, log_variance, domain=self.domain, levels=self.settings.levels
        )


def _estimate(prediction: Prediction, noised: Noised) -> Tensor:
    """The clean estimate [B, ...] of a constant prediction, at the input that the target explains.

    That input is put together from the target: its graph is that of the target, or none.
    """
    assert noised.alpha is not None
    assert noised.sigma is not None
    assert noised.eps is not None
    x_t = noised.alpha * noised.x0 + noised.sigma * noised.eps
    return prediction._replace(value=prediction.value.detach(), x_t=x_t).x0


def _domain(build: Build) -> Domain | None:
    """The range of the levels of images; None for data without one."""
    domain = build.data.domain if build.data is not None else None
    return domain if domain is not None and math.isfinite(domain.span) else None


def _check(keys: Hybrid.Settings, build: Build) -> None:
    """Refuse recipes that have no such loss.

    Raises:
        RecipeError: R10 for a schedule that is continuous or does not preserve the variance, a view
            of images, a model that is no denoiser or has no variance head.
    """
    schedule = build.schedule
    if schedule is None or not schedule.variance_preserving or not schedule.num_steps:
        message = "the bound is that of a discrete variance-preserving schedule"
        refuse(build, "use", message, "use vp-linear or vp-cosine with num_steps above 0")
    view = build.views.get(keys.view)
    if view is not None and view.root != "clean":
        message = f"{keys.view!r} is a view of images, which have no noise to remove"
        refuse(build, "view", message, "name the view clean, or one made from it")
    model = build.models.get(keys.role)
    if model is not None and model.parametrization == "none":
        message = f"model {keys.role!r} is no denoiser"
        refuse(build, "role", message, "name a backbone with a parametrization")
    if model is not None and not model.learns_sigma:
        refuse(build, "role", f"model {keys.role!r} has no variance head", HEAD)
