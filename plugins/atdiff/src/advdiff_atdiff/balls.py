"""Steps and balls of one size in every norm.

A pair `alpha`, `rho` means the same in all of them: a step has the L2 length `alpha` over a whole
image, and a ball holds what has a root mean square of `rho` per entry and is spread evenly. With D
entries (DERIVED, but for L2, which is what the released code has):

| norm | step | radius of the ball |
| l2 | `alpha g / |g|_2` | `rho sqrt(D)` |
| linf | `alpha / sqrt(D) sign(g)` | `rho` |
| l1 | `alpha / sqrt(q) sign(g)` on the q largest entries of g | `rho D` |
"""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.math import norms
from advdiff_core.types import Norm

__all__ = ["ascend", "radius"]


def radius(rms: Tensor, norm: Norm, entries: int) -> Tensor:
    """Radius [B] of the ball of `norm` that holds even perturbations of root mean square `rms`.

    Args:
        rms: Root mean square per entry [B].
        norm: Norm of the ball.
        entries: Number of entries D of a sample.
    """
    return rms * {"linf": 1.0, "l2": entries**0.5, "l1": float(entries)}[norm]


def ascend(delta: Tensor, gradient: Tensor, *, alpha: float, norm: Norm, top: int = 1) -> Tensor:
    """One step uphill of L2 length `alpha`; a sample whose gradient is not finite stays.

    Only the direction of the gradient counts, so that a loss times any factor gives the same step.

    Args:
        delta: Where each sample is [B, ...].
        gradient: Gradient towards delta [B, ...], of any scale.
        alpha: Length of the step over a whole sample.
        norm: Norm in which the step is steepest.
        top: Entries that an L1 step moves.
    """
    good = gradient.isfinite().flatten(1).all(1)
    usable = torch.where(_like(good, gradient), gradient, torch.zeros_like(gradient))
    return delta + alpha * _direction(usable, norm, top).to(delta.dtype)


def _direction(gradient: Tensor, norm: Norm, top: int) -> Tensor:
    """The step of L2 length 1 [B, ...], or 0 for a zero gradient."""
    if norm == "linf":
        return norms.steepest_ascent(gradient, "linf") / gradient[0].numel() ** 0.5
    if norm == "l2":
        return norms.steepest_ascent(gradient, "l2")
    flat = gradient.flatten(1)
    largest = flat.abs().topk(top, dim=1).indices
    signs = flat.gather(1, largest).sign() / top**0.5
    return torch.zeros_like(flat).scatter(1, largest, signs).reshape(gradient.shape)


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(-1, *([1] * (x.dim() - 1)))
