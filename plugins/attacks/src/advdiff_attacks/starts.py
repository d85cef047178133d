"""Where a search begins: the clean point, or a random point of the ball."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advdiff_core import Budget, Draws, expand
from advdiff_core.math import norms
from advdiff_core.types import Domain, Norm

__all__ = ["StartLaw", "inside", "start"]

#: none: the clean point. uniform: over the ball's volume (Madry et al. 2018). corners: where the
#: ball sticks out, Linf signs (R+FGSM, Tramer et al. 2018), an L2 direction, an L1 coordinate.
#: gaussian: normal numbers of a small std (TRADES, Zhang et al. 2019).
StartLaw = Literal["none", "uniform", "corners", "gaussian"]


def start(  # noqa: PLR0913 - a point, its constraints and a law.
    x: Tensor,
    budget: Budget,
    domain: Domain | None,
    rng: Draws,
    *,
    law: StartLaw,
    scale: float = 1.0,
    std: float = 0.001,
) -> Tensor:
    """Starting points [B, ...] inside the budget and the domain.

    Args:
        x: Clean inputs [B, ...].
        budget: Norm, and radius [B] in units of `x`.
        domain: Valid range, or None.
        rng: Random numbers of this start.
        law: How the points are distributed.
        scale: Share of the radius that "uniform" and "corners" use.
        std: Standard deviation of "gaussian", on the [0, 1] scale of the domain.
    """
    if law == "none":
        return x
    if law == "gaussian":
        delta = rng.normal(x.shape) * (std * (domain.span if domain is not None else 1.0))
    else:
        radius = scale * torch.as_tensor(budget.radius)
        make = norms.uniform_in_ball if law == "uniform" else _corners
        delta = make(x.shape, norm=budget.norm, radius=radius, draws=rng)
    return inside(x + delta.to(x), x, budget, domain)


def inside(moved: Tensor, x: Tensor, budget: Budget, domain: Domain | None) -> Tensor:
    """`moved` [B, ...] projected onto the budget around `x` [B, ...], then onto the domain.

    The two projections are those of PGD; together they are exact for Linf alone.
    """
    near = x + norms.project(moved - x, norm=budget.norm, radius=budget.radius)
    return near if domain is None else near.clamp(domain.low, domain.high)


def _corners(x_shape: torch.Size, *, norm: Norm, radius: Tensor, draws: Draws) -> Tensor:
    signs = draws.normal(x_shape)
    # Where a normal number is zero, no coordinate would move.
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    direction = norms.steepest_ascent(signs, norm)
    return direction * expand(radius, direction)
