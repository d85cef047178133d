"""Accuracy of a linear head on the first k principal directions, for every k at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advdiff_dra.geometry import rows_at_once

__all__ = ["AffineHead", "Basis", "best_dimension", "least_dimension", "prefix_accuracy"]


class AffineHead(NamedTuple):
    """Logits as an affine map of features: `weight f + bias`.

    Attributes:
        weight: [K, D].
        bias: [K].
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, K] of features [N, D]."""
        return features @ self.weight.T + self.bias


class Basis(NamedTuple):
    """Mean and principal directions of features.

    Attributes:
        mean: [D].
        directions: Columns by falling variance [D, D].
    """

    mean: Tensor
    directions: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Basis:
        """That of features [N, D], in float64: O(N D^2 + D^3), once."""
        values = features.double()
        mean = values.mean(0)
        centred = values - mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        return cls(mean, vectors.flip(1))


def prefix_accuracy(features: Tensor, labels: Tensor, *, head: AffineHead, basis: Basis) -> Tensor:
    """Accuracy on features projected on the first k directions, for k = 1 to D, float64 [D].

    The logits of all projections at once: with directions u_j and f_k = m + sum_{j<=k} u_j u_j.(f -
    m) they are `(W m + b) + cumsum_j (u_j.(f - m)) (W u_j)`, which takes O(N D C) after one
    rotation instead of a projection per k, O(N D^2 C). Memory for a strip of samples.

    Args:
        features: Features [N, D].
        labels: Classes [N].
        head: From features to logits of C classes.
        basis: Of the projections.
    """
    weight, bias = head.weight.double(), head.bias.double()
    mean, turn = basis.mean.double(), basis.directions.double()
    start, seen = weight @ mean + bias, (weight @ turn).T
    right = torch.zeros(turn.shape[1], dtype=torch.float64)
    rows = rows_at_once(seen.numel())
    for part, classes in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
        parts = (part.double() - mean) @ turn
        logits = start + (parts[:, :, None] * seen).cumsum(dim=1)
        right += (logits.argmax(2) == classes[:, None]).double().sum(0)
    return right / len(features)


def least_dimension(accuracy: Tensor, share: float) -> int:
    """The smallest k with at least `share` of the accuracy of all directions [D]."""
    enough = accuracy >= share * accuracy[-1]
    return int(enough.int().argmax()) + 1


def best_dimension(accuracy: Tensor) -> int:
    """The k of the largest accuracy [D]; the smallest of several."""
    return int((accuracy == accuracy.max()).int().argmax()) + 1
