"""MART: adversarial training that weighs misclassified examples more."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Logits
from advdiff_dra.classifiers import check_classifier, classes, divergence

__all__ = ["Mart", "boosted_cross_entropy"]


class Mart(LossTerm):
    """`BCE(p(x_adv), y) + beta KL(p(x) || p(x_adv)) (1 - p_y(x))` (Wang et al. 2020, eq. 11).

    The boosted cross-entropy adds to `-log p_y` the margin part `-log(1 - max_{k != y} p_k)`; the
    divergence counts where the clean sample is misclassified. Gradients flow into both predictions
    and the weight, as in the released code, which attacks the cross-entropy. Both logarithms are
    exact here, where that code adds small constants. Of a mixed sample the larger part is its
    class.
    """

    @settings
    class Settings:
        """Keys of `use = "mart"`."""

        role: str = setting("student", ref="role", help="classifier that is trained")
        view: str = setting("adv", ref="view", help="view of the adversarial images")
        clean: str = setting("image", ref="view", help="view of the clean images")
        beta: float = setting(
            5.0, ge=0.0, help="weight of the divergence: 5 for a ResNet-18, 6 for a wide ResNet"
        )

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
        y = classes(step.y)
        wrong = _complement(clean.log_softmax(1), y).exp()
        robust = divergence(clean, adversarial) * wrong
        return boosted_cross_entropy(adversarial, y) + self.settings.beta * robust


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """`-log p_y - log(1 - max_{k != y} p_k)` [B] of logits [B, K] for classes `y` [B] (eq. 8)."""
    logp = logits.log_softmax(1)
    rival = logp.scatter(1, y[:, None], -torch.inf).argmax(1)
    return -logp.gather(1, y[:, None]).squeeze(1) - _complement(logp, rival)


def _complement(logp: Tensor, k: Tensor) -> Tensor:
    """`log(1 - p_k)` [B]: the sum of the others, so that nothing cancels where p_k is near 1."""
    return logp.scatter(1, k[:, None], -torch.inf).logsumexp(1)
