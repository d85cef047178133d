"""TRADES: natural error against the distance between clean and adversarial predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Logits
from advdiff_dra.classifiers import check_classifier, targets

__all__ = ["Trades", "divergence"]


class Trades(LossTerm):
    """`CE_ls(f(x), y) + beta KL(p(x) || p(x_adv))` of a classifier.

    Zhang et al. (2019), eq. 5, with both predictions in the gradient, as in the released code and
    in Gowal et al. (2020), Rebuffi et al. (2021) and Wang et al. (2023). The attack is the
    perturbation of `view`; at its end the divergence is what it made grow, so that view is
    `attack` with `objective = "kl"`. The clean logits are computed once for both.
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
        # Clean first, as in the reference: batch norms see the batches in this order.
        self.natural = Logits(settings.role, settings.clean)
        self.attacked = Logits(settings.role, settings.view)
        self.needs = (self.natural, self.attacked)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        clean, adversarial = step.get(self.natural), step.get(self.attacked)
        natural = F.cross_entropy(
            clean, targets(step.y), reduction="none", label_smoothing=self.settings.label_smoothing
        )
        return natural + self.settings.beta * divergence(clean, adversarial)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) [B] of two softmax distributions, given as logits [B, K]."""
    before, after = p.log_softmax(1), q.log_softmax(1)
    return (before.exp() * (before - after)).sum(1)
