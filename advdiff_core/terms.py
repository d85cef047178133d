"""The loss terms of the core: denoising, and classification."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.math.weights import WeightLaw, loss_weight
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Forward, Logits, View
from advdiff_core.types import Prediction, PredictionKind

__all__ = ["CrossEntropy", "Denoise"]

_CLAMPED = ("min-snr", "soft-min-snr", "p2")


class Denoise(LossTerm):
    """Squared error of a denoiser: mean over elements of `weight(t) |prediction - truth|^2`.

    The truth is that of the view, in any space: on a perturbed view whose target follows the
    perturbation it is the moved noise. With every default this is the loss of Ho et al. (2020,
    eq. 14) in the model's own parametrization; for the edm parametrization it is that of Karras
    et al. (2022, eq. 2), in x0 with weight `1 / sigma^2 + 1 / sigma_data^2`.
    """

    @settings
    class Settings:
        """Keys of `use = "denoise"`."""

        role: str = setting("student", ref="role", help="denoiser that is trained")
        view: str = setting("clean", ref="view", help="view it looks at")
        space: Literal["auto", "eps", "x0", "v", "flow"] = setting(
            "auto", help="what is compared; auto is what the model predicts, x0 for edm"
        )
        weighting: Literal["auto", "uniform", "min-snr", "soft-min-snr", "edm", "p2"] = setting(
            "auto", help="weight by noise level; auto is uniform, edm for edm models"
        )
        gamma: float | None = setting(
            None, gt=0.0, applies=("weighting", _CLAMPED),
            help="parameter of min-snr (5), soft-min-snr (4) and p2 (1); those values if left out",
        )  # fmt: skip
        k: float = setting(1.0, gt=0.0, applies=("weighting", ("p2",)), help="offset of p2")
        sigma_data: float | None = setting(
            None, gt=0.0, applies=("weighting", ("auto", "edm")),
            help="standard deviation of the data for edm; the model's if left out",
        )  # fmt: skip

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.space, self.law = _space_and_law(settings, build)
        model = build.models.get(settings.role)
        known = model.sigma_data if model is not None else None
        self.sigma_data = settings.sigma_data or known or 0.5
        self.forward_query = Forward(settings.role, settings.view)
        self.noised = View(settings.view)
        self.needs = (self.forward_query, self.noised)

    def forward(self, step: Step) -> Tensor:
        """The weighted squared error of each sample [B]."""
        prediction, noised = step.get(self.forward_query), step.get(self.noised)
        space: PredictionKind = prediction.kind if self.space == "auto" else self.space
        error = prediction.to(space) - noised.truth(space)
        loss = error.square().flatten(1).mean(1)
        if self.law == "uniform":
            return loss
        return self._weight(prediction, space).to(loss.dtype) * loss

    def _weight(self, prediction: Prediction, space: PredictionKind) -> Tensor:
        assert prediction.alpha is not None
        assert prediction.sigma is not None
        snr = (prediction.alpha / prediction.sigma).square().flatten()
        return loss_weight(
            self.law, snr, space,
            gamma=self.settings.gamma, k=self.settings.k, sigma_data=self.sigma_data,
        )  # fmt: skip


def _space_and_law(
    keys: Denoise.Settings, build: Build
) -> tuple[PredictionKind | Literal["auto"], WeightLaw]:
    view, model = build.views.get(keys.view), build.models.get(keys.role)
    if view is not None and view.root != "clean":
        refuse(build, "view", f"{keys.view!r} is a view of images, which have no noise to remove",
               "name the view clean, or one made from it")  # fmt: skip
    if model is not None and model.parametrization == "none":
        refuse(build, "role", f"model {keys.role!r} is no denoiser",
               "name a backbone with a parametrization")  # fmt: skip
    edm = model is not None and model.parametrization == "edm"
    law: WeightLaw = ("edm" if edm else "uniform") if keys.weighting == "auto" else keys.weighting
    return keys.space, law


class CrossEntropy(LossTerm):
    """Cross-entropy of a classifier's logits with the labels."""

    @settings
    class Settings:
        """Keys of `use = "cross-entropy"`."""

        role: str = setting("student", ref="role", help="classifier that is trained")
        view: str = setting("image", ref="view", help="view it looks at")
        label_smoothing: float = setting(
            0.0, ge=0.0, lt=1.0, help="share of the target spread evenly over all classes"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        model = build.models.get(settings.role)
        if model is not None and (model.kind != "backbone" or model.parametrization != "none"):
            refuse(build, "role", f"model {settings.role!r} is no classifier",
                   'give that model parametrization = "none"')  # fmt: skip
        if build.data is not None and build.data.classes == 0:
            refuse(build, "use", "the data have no labels", "use a dataset with classes")
        self.logits = Logits(settings.role, settings.view)
        self.needs = (self.logits,)

    def forward(self, step: Step) -> Tensor:
        """The cross-entropy of each sample [B]."""
        assert step.y is not None, "checked against the dataset's description"
        logits = step.get(self.logits)
        smoothing = self.settings.label_smoothing
        # Labels of mixed samples are probabilities [B, K].
        y = step.y if step.y.dim() == 2 else step.y.to(torch.int64)
        loss: Tensor = F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
        return loss
