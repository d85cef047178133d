"""How far states are moved by attacks outside of training, and the search inside that ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from advdiff_core import expand
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings

__all__ = ["ReachSettings", "ascend", "reach", "uniform_start"]

Norm = Literal["linf", "l2"]


@settings
class ReachSettings:
    """Keys of a ball around a state: its radius at a noise level, its norm and unit.

    `law = "ray"`: radius times the ray `s(t)^omega + gamma` of training, with the noise share
    `s = sigma / sqrt(alpha^2 + sigma^2)`; `law = "fixed"`: radius itself. A radius of the L2 norm
    counts per root of the dimension, so that both norms have the same scale.
    """

    radius: float = setting(1.0, ge=0.0, help="radius of the ball, see law")
    law: Literal["ray", "fixed"] = setting(
        "ray", help="radius times the ray of training, or the same radius at every noise level"
    )
    omega: float = setting(2.0, gt=0.0, help="exponent of the ray", applies=("law", ("ray",)))
    gamma: float = setting(8 / 255, ge=0.0, help="bias of the ray", applies=("law", ("ray",)))
    norm: Norm = setting("linf", help="norm of the ball")
    unit: Literal["image", "noise"] = setting(
        "noise", help="add delta to eps, which moves x_t by sigma delta, or to x_t as it is"
    )


def reach(keys: ReachSettings, alpha: Tensor, sigma: Tensor, width: int) -> Tensor:
    """Radius of each sample [B] in units of `x_t`.

    Args:
        keys: The ball.
        alpha: Signal scale [B].
        sigma: Noise scale [B].
        width: Numbers in a sample.
    """
    share = sigma / (alpha.square() + sigma.square()).sqrt()
    scale = share**keys.omega + keys.gamma if keys.law == "ray" else torch.ones_like(share)
    radius = keys.radius * scale
    radius = radius * sigma if keys.unit == "noise" else radius
    return radius * width**0.5 if keys.norm == "l2" else radius


def uniform_start(normal: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """A point of the ball [B, ...] for standard normal numbers [B, ...], random and not 0.

    Uniform in the box for Linf; for L2 uniform on the sphere.

    Args:
        normal: Standard normal numbers [B, ...].
        radius: Radius [B].
        norm: Norm of the ball.
    """
    unit = norms.steepest_ascent(normal, "l2") if norm == "l2" else torch.erf(normal / 2**0.5)
    return norms.project(unit * expand(radius, normal).to(normal), norm=norm, radius=radius)


def ascend(  # noqa: PLR0913 - a search in a ball.
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    radius: Tensor,
    *,
    norm: Norm,
    steps: int,
    step_scale: float,
) -> Tensor:
    """The best delta [B, ...] of projected gradient ascent (Madry et al., 2018), per sample.

    Evaluates the objective steps + 1 times; on equal values the earlier point is kept.

    Args:
        objective: Value of each sample [B] at a delta [B, ...], with a graph to it.
        start: First delta [B, ...], inside the ball.
        radius: Radius [B].
        norm: Norm of the ball.
        steps: Number of steps.
        step_scale: Length of a step as a share of the radius.
    """
    delta, best = start.detach(), start.detach()
    value = torch.full_like(radius, -torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = delta.detach().requires_grad_()
            now = objective(leaf)
            gradient = torch.autograd.grad(now.sum(), leaf)[0] if step < steps else None
        better = now.detach().to(value) > value
        value = torch.where(better, now.detach().to(value), value)
        best = torch.where(expand(better, delta), delta, best)
        if gradient is not None:
            length = step_scale * expand(radius, delta).to(delta)
            ahead = delta + length * norms.steepest_ascent(gradient, norm)
            delta = norms.project(ahead, norm=norm, radius=radius)
    return best
