"""Norms per sample, exact projections onto their balls, and points and directions in them.

All functions take `[B, ...]` and treat each sample as one vector of D numbers. float16 and bfloat16
are computed in float32 and returned in their own type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.types import Norm

__all__ = ["BallDraws", "norm", "project", "steepest_ascent", "uniform_in_ball"]


class BallDraws(Protocol):
    """The random numbers `uniform_in_ball` asks for; `Draws` gives them."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers of this shape."""

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers uniform in [low, high), of this shape."""


def norm(x: Tensor, kind: Norm) -> Tensor:
    """Norm of each sample [B].

    The L2 norm neither overflows nor underflows: a saturated loss has gradients as small as 1e-30.

    Args:
        x: Vectors [B, ...].
        kind: "linf", "l2" or "l1".
    """
    flat = _flat(x)
    if kind == "linf":
        return flat.abs().amax(dim=1).to(x.dtype)
    if kind == "l1":
        return flat.abs().sum(dim=1).to(x.dtype)
    _known(kind)
    largest = _nonzero(flat.detach().abs().amax(dim=1))
    norms: Tensor = largest * torch.linalg.vector_norm(flat / largest[:, None], dim=1)
    return norms.to(x.dtype)


def project(delta: Tensor, *, norm: Norm, radius: Tensor | float) -> Tensor:
    """Move each sample of `delta` to the nearest point (Euclidean) of its norm ball.

    The projection step of PGD (Madry et al., 2018). L1 by sorting (Duchi et al., 2008, figure 1).

    Args:
        delta: Perturbation [B, ...].
        norm: Norm of the ball: "linf", "l2" or "l1".
        radius: Radius of the ball, in units of `delta`; one number or [B].

    Returns:
        Perturbation [B, ...] with per-sample norm at most radius; bit for bit `delta` where already
        inside; zero where the radius is zero.
    """
    flat = _flat(delta)
    limit = torch.as_tensor(radius, dtype=flat.dtype, device=flat.device).reshape(-1, 1)
    return _PROJECTIONS[_known(norm)](flat, limit).reshape(delta.shape).to(delta.dtype)


def _project_linf(flat: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(flat, -limit), limit)


def _project_l2(flat: Tensor, limit: Tensor) -> Tensor:
    length = norm(flat, "l2")[:, None]
    scaled = flat * (_inner(limit) / _nonzero(length))
    return torch.where(length > limit, scaled, flat)


def _project_l1(flat: Tensor, limit: Tensor) -> Tensor:
    """Soft-threshold at the theta for which the absolute values sum to the radius."""
    size = flat.abs()
    # A float32 sum of many numbers would put the threshold off by far more than an ulp.
    ordered = size.double().sort(dim=1, descending=True).values
    rank = torch.arange(1, flat.shape[1] + 1, device=flat.device)
    excess = ordered.cumsum(dim=1) - _inner(limit).double()
    kept = (rank * (ordered * rank > excess)).amax(dim=1, keepdim=True).clamp_min(1)
    theta = excess.gather(1, kept - 1) / kept
    shrunk = (size.double() - theta).clamp_min(0)
    # The subtraction cancels where the radius is small: put the sum right.
    shrunk = shrunk * (_inner(limit).double() / _nonzero(shrunk.sum(dim=1, keepdim=True)))
    shrunk = shrunk.to(flat.dtype) * flat.sign()
    return torch.where(size.sum(dim=1, keepdim=True) > limit, shrunk, flat)


def _inner(limit: Tensor) -> Tensor:
    # A few units in the last place, lest the norm of the result rounds to above the radius.
    return limit * (1 - 4 * torch.finfo(limit.dtype).eps)


_PROJECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linf": _project_linf,
    "l2": _project_l2,
    "l1": _project_l1,
}


def uniform_in_ball(
    shape: Sequence[int], *, norm: Norm, radius: Tensor | float, draws: BallDraws
) -> Tensor:
    """Points distributed uniformly over the volume of a norm ball [B, ...], float32.

    Args:
        shape: Shape [B, ...] of the result.
        norm: Norm of the ball: "linf", "l2" or "l1".
        radius: Radius of the ball; one number or [B].
        draws: Source of random numbers.
    """
    unit = _UNIFORM[_known(norm)](shape[0], torch.Size(shape[1:]).numel(), draws)
    limit = torch.as_tensor(radius, dtype=unit.dtype, device=unit.device).reshape(-1, 1)
    return project((unit * limit).reshape(tuple(shape)), norm=norm, radius=radius)


def _uniform_linf(count: int, width: int, draws: BallDraws) -> Tensor:
    return draws.uniform((count, width), -1.0, 1.0)


def _uniform_l2(count: int, width: int, draws: BallDraws) -> Tensor:
    direction = steepest_ascent(draws.normal((count, width)), "l2")
    return direction * draws.uniform((count, 1)) ** (1 / width)


def _uniform_l1(count: int, width: int, draws: BallDraws) -> Tensor:
    # D signed and one further exponential, divided by their sum: uniform over the ball (Barthe et
    # al., 2005, "A probabilistic approach to the geometry of the l_p^n-ball", theorem 1).
    signed = draws.uniform((count, width + 1), -1.0, 1.0)
    exponential = -torch.log1p(-signed.abs().clamp_max(1 - 2.0**-24))
    total = _nonzero(exponential.sum(dim=1, keepdim=True))
    return (exponential * signed.sign() / total)[:, :width]


_UNIFORM: dict[str, Callable[[int, int, BallDraws], Tensor]] = {
    "linf": _uniform_linf,
    "l2": _uniform_l2,
    "l1": _uniform_l1,
}


def steepest_ascent(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of unit norm along which a linear function grows fastest [B, ...].

    Signs for Linf, the normalised gradient for L2, the signed largest coordinate (the first of
    equals) for L1. Zero for a zero gradient.

    Args:
        gradient: Gradient [B, ...].
        norm: Norm that measures the step: "linf", "l2" or "l1".
    """
    flat = _flat(gradient)
    if _known(norm) == "linf":
        step = flat.sign()
    elif norm == "l2":
        step = _normalised(flat)
    else:
        index = flat.abs().argmax(dim=1, keepdim=True)
        step = torch.zeros_like(flat).scatter(1, index, flat.gather(1, index).sign())
    return step.reshape(gradient.shape).to(gradient.dtype)


def _normalised(flat: Tensor) -> Tensor:
    # Divide by the largest entry first: the squares of tiny gradients would vanish.
    scaled = flat / _nonzero(flat.abs().amax(dim=1, keepdim=True))
    return scaled / _nonzero(torch.linalg.vector_norm(scaled, dim=1, keepdim=True))


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))


def _nonzero(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.ones_like(x), x)


def _known(kind: Norm) -> Norm:
    if kind not in ("linf", "l2", "l1"):
        message = f"unknown norm {kind!r}; wanted linf, l2 or l1"
        raise ValueError(message)
    return kind
