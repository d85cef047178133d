"""Linear models of the boundary between a sample's class and others, one gradient each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from advdiff_core import Victim, expand
from advdiff_core.math import norms
from advdiff_core.types import Norm

__all__ = ["DUAL", "Linear", "Linearise", "nearest_of_all", "towards"]

#: The norm that measures gradients where this one measures displacements.
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


class Linear(NamedTuple):
    """A linear model of `z_t - z_y` at points [N, ...].

    Attributes:
        value: Its value there [N]; positive where class t has the larger logit.
        gradient: Its gradient [N, ...].
        outputs: All logits there [N, K].
    """

    value: Tensor
    gradient: Tensor
    outputs: Tensor


#: Makes it for a victim, points and the rival classes of these samples [N, C].
Linearise = Callable[[Victim, Tensor, Tensor, Norm], Linear]


def towards(victim: Victim, x: Tensor, classes: Tensor, norm: Norm) -> Linear:
    """The boundary to one target class each, `classes` [N, 1], at `x` [N, ...]."""
    del norm
    return next(_models(victim, x, classes))


def nearest_of_all(victim: Victim, x: Tensor, classes: Tensor, norm: Norm) -> Linear:
    """The boundary nearest to `x` [N, ...] by its linear model, among `classes` [N, C]."""
    models = _models(victim, x, classes)
    best = next(models)
    shortest = _distance(best, norm)
    for model in models:
        distance = _distance(model, norm)
        nearer = distance < shortest
        shortest = torch.where(nearer, distance, shortest)
        gradient = torch.where(expand(nearer, x), model.gradient, best.gradient)
        best = best._replace(value=torch.where(nearer, model.value, best.value), gradient=gradient)
    return best


def _distance(model: Linear, norm: Norm) -> Tensor:
    return model.value.abs() / norms.norm(model.gradient, DUAL[norm]).clamp_min(1e-12)


def _models(victim: Victim, x: Tensor, classes: Tensor) -> Iterator[Linear]:
    """One for each column of `classes` [N, C], from one forward."""
    assert victim.labels is not None, "a boundary lies between classes"
    at = x.detach().requires_grad_()
    logits = victim.outputs(at)
    outputs, last = logits.detach(), classes.shape[1] - 1
    own = logits.gather(1, victim.labels[:, None])[:, 0]
    for number in range(classes.shape[1]):
        value = logits.gather(1, classes[:, number : number + 1])[:, 0] - own
        (gradient,) = torch.autograd.grad(value.sum(), at, retain_graph=number < last)
        yield Linear(value.detach(), gradient, outputs)
