"""Labels in discriminators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from advdiff_core.errors import ContractError

__all__ = ["LabelMap"]


class LabelMap(nn.Module):
    """Projects features on the embedding of a label (Miyato and Koyama 2018, eq. 3).

    The embedding has a part that all labels share, which alone judges images without label.

    Args:
        classes: Number of classes.
        width: Width of the features.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.shared = nn.Parameter(nn.init.normal_(torch.empty(width)))
        self.embedding = nn.Embedding(classes, width)

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Logits [B, N] of features [B, D, N]; labels are [B] or probabilities [B, K].

        Raises:
            ContractError: If a label is not one of the classes.
        """
        weight = self.shared.expand(len(features), -1)
        if labels is not None:
            weight = weight + self._embedded(labels)
        return torch.einsum("bdn,bd->bn", features, weight) / math.sqrt(features.shape[1])

    def _embedded(self, labels: Tensor) -> Tensor:
        if not labels.is_floating_point():
            found: Tensor = self.embedding(labels)
            return found
        known = self.embedding.num_embeddings
        if labels.shape[1] != known:
            message = f"labels of {labels.shape[1]} classes for an embedding of {known}"
            raise ContractError(
                message, where="discriminator", fix=f"set classes = {labels.shape[1]}"
            )
        return labels.to(self.embedding.weight.dtype) @ self.embedding.weight
