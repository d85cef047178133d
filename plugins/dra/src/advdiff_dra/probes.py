"""Linear probes: multinomial logistic regression on frozen features, solved to its optimum."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core import DataError
from advdiff_dra.dimension import AffineHead

__all__ = ["Probe", "fit_probe"]

#: Logit of a class that no training feature has: it is never named.
NEVER = -1e4


@frozen(kw_only=True, eq=False)
class Probe:
    """A linear head with the standardisation that it was fitted after.

    Attributes:
        mean: What is subtracted from features [D].
        scale: What they are divided by [D].
        head: From standardised features to logits.
        converged: Whether the solver came to its tolerance.
        iterations: Its iterations.
    """

    mean: Tensor
    scale: Tensor
    head: AffineHead
    converged: bool = True
    iterations: int = 0

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, K] of features [N, D], in their dtype and on their device."""
        whole = self.folded
        return AffineHead(whole.weight.to(features), whole.bias.to(features)).logits(features)

    @property
    def folded(self) -> AffineHead:
        """The head on features as they are."""
        weight = self.head.weight / self.scale
        return AffineHead(weight, self.head.bias - weight @ self.mean)


def fit_probe(  # noqa: PLR0913 - the keys of a probe.
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    c: float = 1.0,
    iterations: int = 1000,
    standardise: bool = True,
) -> Probe:
    """Minimise `|W|^2 / 2 + c sum_i CE(W f_i + b, y_i)` by scikit-learn's L-BFGS in float64.

    The problem is convex: neither a seed nor a learning rate decides the answer. O(N D K) an
    iteration.

    Args:
        features: Features [N, D] of the training images.
        labels: Their classes [N].
        classes: Number of classes K; one that does not occur is never named.
        c: Inverse strength of the penalty.
        iterations: Most iterations of the solver.
        standardise: Bring every feature to mean 0 and deviation 1 over these features first; one
            that is constant is left at 0.

    Raises:
        DataError: If the labels are all the same.
    """
    # Imported here: scikit-learn takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(torch.unique(labels)) < 2:
        message = f"all {len(labels)} training images have one label"
        raise DataError(message, code="D03", where="linear probe", fix="name data with classes")
    values = features.double()
    mean, scale = _standards(values, standardise=standardise)
    solver = LogisticRegression(C=c, max_iter=iterations, tol=1e-6)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        solver.fit(((values - mean) / scale).numpy(), labels.numpy())
    return Probe(
        mean=mean, scale=scale, head=_head(solver, classes), iterations=int(solver.n_iter_.max()),
        converged=not any(issubclass(one.category, ConvergenceWarning) for one in told),
    )  # fmt: skip


def _standards(values: Tensor, *, standardise: bool) -> tuple[Tensor, Tensor]:
    width = values.shape[1]
    if not standardise:
        return values.new_zeros(width), values.new_ones(width)
    deviation = values.std(0, correction=0)
    # Rounding leaves a constant feature a deviation of about 1e-17 of its size.
    dead = deviation <= 1e-12 * values.abs().amax(0)
    return values.mean(0), torch.where(dead, 1.0, deviation)


def _head(solver: Any, classes: int) -> AffineHead:
    """scikit-learn's coefficients as logits of all classes [K]."""
    found, offset = torch.from_numpy(solver.coef_), torch.from_numpy(solver.intercept_)
    if len(found) == 1:  # Two classes: the logit of the second one against the first.
        found = torch.cat([torch.zeros_like(found), found])
        offset = torch.cat([torch.zeros_like(offset), offset])
    weight = torch.zeros(classes, found.shape[1], dtype=torch.float64)
    bias = torch.full((classes,), NEVER, dtype=torch.float64)
    seen = torch.as_tensor(solver.classes_, dtype=torch.int64)
    weight[seen], bias[seen] = found, offset
    return AffineHead(weight, bias)
