"""TRADES: natural error against the distance between clean and adversarial predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Logits
from advdiff_dra.classifiers import check_classifier, divergence, targets

__all__ = ["Trades"]


class Trades(LossTerm):
    """`CE_ls(f(x), y) + beta KL(p(x) || p(x_adv))` of a classifier.

    Zhang et al. (2019), eq. 5, with gradients into both predictions, as in the released code and in
    Gowal et al. (2020), Rebuffi et al. (2021) and Wang et al. (2023). What makes the adversarial
    images is the perturbation of `view`: `attack` with `objective = "kl"`, which raises what this
    term lowers and shares the clean logits with it. Its key `mode` tells the lineages apart.
    """

    @settings
    class Settings:
        """Keys of `use = "trades"`."""

        role: str = setting("student", ref="role", help="classifier that is trained")
        view: str = setting("adv", ref="view", help="view of the adversarial images")
        clean: str = setting("image", ref="view", help="view of the clean images")
        beta: float = setting(
            6.0, ge=0.0, help="weight of the divergence: 6 (2019); DM-AT takes 5 on CIFAR-10"
        )
        label_smoothing: float = setting(
            0.0, ge=0.0, lt=1.0,
            help="share of the target spread evenly over all classes; DM-AT takes 0.1",
        )  # fmt: skip

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        check_classifier(build, settings.role, {"view": settings.view, "clean": settings.clean})
        self.natural = Logits(settings.role, settings.clean)
        self.attacked = Logits(settings.role, settings.view)
        self.needs = (self.natural, self.attacked)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        clean, adversarial = step.get(self.natural), step.get(self.attacked)
        smoothing = self.settings.label_smoothing
        natural = F.cross_entropy(
            clean, targets(step.y), reduction="none", label_smoothing=smoothing
        )
        return natural + self.settings.beta * divergence(clean, adversarial)
