"""Classifiers as attacks see them: images to logits, and what counts as broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor, nn

from advdiff_core.errors import DataError

__all__ = ["ClassifierVictim", "Logits"]


class Logits(nn.Module):
    """A backbone as a function from inputs to logits.

    Args:
        backbone: The backbone; its mode is left as it is.
        where: What messages name.
    """

    def __init__(self, backbone: nn.Module, where: str) -> None:
        super().__init__()
        self.backbone = backbone
        self._where = where

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...], float32.

        Raises:
            DataError: R10 if the network returns none.
        """
        logits = self.backbone(x, None, None).output
        if logits is None or logits.dim() != 2:
            found = None if logits is None else list(logits.shape)
            message = f"the network returned {found}, wanted one logit per class [B, K]"
            raise DataError(message, code="R10", where=self._where, fix="name a classifier")
        return cast("Tensor", logits.float())


@frozen(kw_only=True, eq=False)
class ClassifierVictim:
    """A classifier and the true classes; see `advdiff_core.interfaces.attack.Victim`.

    Attributes:
        network: From inputs [B, ...] to logits [B, K].
        labels: True classes [B].
    """

    network: Callable[[Tensor], Tensor]
    labels: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...]."""
        return self.network(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B] of `outputs` [B, K]."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Samples whose `outputs` [B, K] name another class, or are not finite [B]."""
        return outputs.argmax(dim=1).ne(self.labels) | ~outputs.isfinite().all(dim=1)

    def rows(self, rows: Tensor) -> ClassifierVictim:
        """The same for the samples `rows` [N]."""
        return evolve(self, labels=self.labels[rows])
