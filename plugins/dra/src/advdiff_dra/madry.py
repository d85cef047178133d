"""Adversarial training proper: the cross-entropy of adversarial images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Logits
from advdiff_dra.classifiers import check_classifier, targets

__all__ = ["PgdAT"]


class PgdAT(LossTerm):
    """`(1 - c) CE(f(x_adv), y) + c CE(f(x), y)` of a classifier.

    With the default `c = 0` the saddle-point problem of Madry et al. (2018), eq. 2.1; with 0.5 the
    mixture of Goodfellow et al. (2015). The adversarial images are those of `view`: `attack` with
    its default objective, the cross-entropy. Without clean images nothing is run on them.
    """

    @settings
    class Settings:
        """Keys of `use = "pgd-at"`."""

        role: str = setting("student", ref="role", help="classifier that is trained")
        view: str = setting("adv", ref="view", help="view of the adversarial images")
        clean: str = setting("image", ref="view", help="view of the clean images")
        clean_share: float = setting(
            0.0, ge=0.0, lt=1.0, help="weight of the clean images; 0 for none, 0.5 for half"
        )
        label_smoothing: float = setting(
            0.0, ge=0.0, lt=1.0, help="share of the target spread evenly over all classes"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        check_classifier(build, settings.role, {"view": settings.view, "clean": settings.clean})
        self.attacked = Logits(settings.role, settings.view)
        self.natural = Logits(settings.role, settings.clean) if settings.clean_share else None
        self.needs = (self.attacked,) if self.natural is None else (self.natural, self.attacked)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        if self.natural is None:
            return self._lost(step.get(self.attacked), step)
        share = self.settings.clean_share
        clean = self._lost(step.get(self.natural), step)
        return share * clean + (1 - share) * self._lost(step.get(self.attacked), step)

    def _lost(self, logits: Tensor, step: Step) -> Tensor:
        smoothing = self.settings.label_smoothing
        loss: Tensor = F.cross_entropy(
            logits, targets(step.y), reduction="none", label_smoothing=smoothing
        )
        return loss
