"""Losses of the two players on scores: hinge, logistic and linear."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "discriminator_loss", "generator_loss"]

#: Forms of the loss.
LOSSES = ("hinge", "logistic", "linear")


def discriminator_loss(form: str, real: Tensor, fake: Tensor, *, scale: float = 1.0) -> Tensor:
    """What the discriminator minimises, for each sample [B]; mean over a sample's scores.

    hinge `relu(1 - D_real) + relu(1 + D_fake)`, logistic `softplus(-s D_real) + softplus(s D_fake)`
    and linear `D_fake - D_real`. Of cosines, which lie in [-1, 1], hinge is linear plus 2, with the
    same gradient; which form ADT (arXiv 2504.11423) has is UNKNOWN.

    Args:
        form: One of `LOSSES`.
        real: Scores of real images [B, ...].
        fake: Scores of generated images [B, ...].
        scale: Factor s of the logistic form, which a bounded score needs to saturate.
    """
    if form == "hinge":
        each = F.relu(1 - real), F.relu(1 + fake)
    elif form == "logistic":
        each = F.softplus(-scale * real), F.softplus(scale * fake)
    else:
        each = -real, fake
    return _mean(each[0]) + _mean(each[1])


def generator_loss(form: str, fake: Tensor, *, scale: float = 1.0) -> Tensor:
    """What the generator minimises, for each sample [B]: `-D`, or `softplus(-s D)` if logistic.

    Args:
        form: One of `LOSSES`.
        fake: Scores of generated images [B, ...].
        scale: Factor s of the logistic form.
    """
    return _mean(F.softplus(-scale * fake) if form == "logistic" else -fake)


def _mean(scores: Tensor) -> Tensor:
    return scores.reshape(len(scores), -1).mean(1)
