"""What attacks climb: losses of logits, per sample, and the victim's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core import Victim

__all__ = ["LossName", "Objective", "cross_entropy", "dlr", "kl", "margin", "objective_of",
           "targeted_dlr"]  # fmt: skip

#: The victim's own loss, or one of logits [B, K] and labels [B].
LossName = Literal["victim", "ce", "margin", "dlr", "kl"]

#: Loss [B] of outputs [B, ...]; larger is better for the attacker.
Objective = Callable[[Tensor], Tensor]

#: Keeps DLR finite where all logits are equal; the value of Croce and Hein (2020).
TINY = 1e-12


def objective_of(victim: Victim, loss: LossName, clean: Tensor | None = None) -> Objective:
    """The loss that a search climbs.

    A victim without labels (a denoiser, a sampler) has one loss, its own, whatever `loss` says.

    Args:
        victim: What is attacked.
        loss: Which loss.
        clean: Outputs [B, K] at the clean inputs; "kl" needs them.
    """
    labels = victim.labels
    if loss == "victim" or labels is None:
        return victim.loss
    if loss == "kl":
        assert clean is not None, '"kl" compares with the clean outputs'
        reference = clean.detach()
        return lambda outputs: kl(outputs, reference)
    by_name = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
    return lambda outputs: by_name[loss](outputs, labels)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [B] of `logits` [B, K] for classes `y` [B]."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p(clean) || p(logits)) [B], of logits [B, K]; what TRADES' attack climbs."""
    ahead, before = logits.log_softmax(1), clean.log_softmax(1)
    return (before.exp() * (before - ahead)).sum(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of another class minus that of class `y` [B]; positive where misclassified."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    return _others(logits, y).amax(1) - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio [B] (Croce and Hein 2020, eq. 6); free of shift and scale.

    `-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`. With two classes there is no third logit and no
    ratio that says anything: the margin itself (ours).
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + TINY)


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted DLR [B] (Croce and Hein 2020, eq. 7): `-(z_y - z_t) / (z_(1) - (z_(3)+z_(4))/2)`.

    With fewer than four classes the mean is over the logits there are from the third on, and with
    two the difference itself is returned (ours).
    """
    own, other = (logits.gather(1, c[:, None]).squeeze(1) for c in (y, target))
    if logits.shape[1] < 3:
        return other - own
    top = logits.topk(min(4, logits.shape[1]), dim=1).values
    return (other - own) / (top[:, 0] - top[:, 2:].mean(1) + TINY)


def _others(logits: Tensor, y: Tensor) -> Tensor:
    """Logits [B, K] with that of class `y` at minus infinity."""
    return logits.scatter(1, y[:, None], -torch.inf)
