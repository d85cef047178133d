"""The independent check: what an attack returned is judged by code that no attack shares.

Norms are computed here in float64 and not by `advdiff_core.math.norms`, which projects for the
attacks: a fault there must not hide itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.errors import UnsoundError
from advdiff_core.types import Domain, Norm

__all__ = ["Verdicts", "check_inputs", "exact_norm", "judge_logits", "slack"]

#: Part of the radius that a norm may exceed it by.
RELATIVE = 1e-6
#: Distance of two logits, in units of the largest, from which no rounding can change their order.
CLEAR = 1e-3

Network = Callable[[Tensor], Tensor]


@frozen(kw_only=True)
class Verdicts:
    """Judgement of B samples.

    Attributes:
        broken: Samples classified wrongly [B], bool, on the CPU; those with logits that are not
            finite are.
        finite: Samples whose logits are finite [B], bool.
    """

    broken: Tensor
    finite: Tensor


def exact_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample of `delta` [B, ...], float64 [B]."""
    flat = delta.double().flatten(1)
    if norm == "linf":
        return flat.abs().max(dim=1).values
    if norm == "l1":
        return flat.abs().sum(dim=1)
    return flat.square().sum(dim=1).sqrt()


def slack(radius: float, norm: Norm, *, size: int, largest: float = 1.0) -> float:
    """What a norm of `x' - x` may exceed `radius` by: a part of it, and the rounding of `x'`.

    Float32 holds a sum `x + delta` to one unit in its last place, so that the norm is off by the
    norm of a vector of such units.

    Args:
        radius: Radius, in units of `x`.
        norm: The norm.
        size: Numbers of one input.
        largest: Largest absolute value of an input.
    """
    ones = {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]
    return RELATIVE * radius + ones * max(1.0, largest) * torch.finfo(torch.float32).eps


def check_inputs(  # noqa: PLR0913 - what is checked, and against what.
    found: Tensor,
    x: Tensor,
    *,
    norm: Norm,
    radius: float,
    domain: Domain | None,
    attack: str,
    ids: list[int],
) -> Tensor:
    """Norm of each perturbation [B], float64, on the CPU.

    Args:
        found: What the attack returned [B, ...].
        x: Clean inputs [B, ...].
        norm: Norm of the budget.
        radius: Its radius, in units of `x`; may be infinite.
        domain: Valid range of inputs, or None.
        attack: Name, for the message.
        ids: Identity of each sample, for the message.

    Raises:
        UnsoundError: E09 for another shape, a value that is not finite, or an input outside the
            domain or the ball, with attack, sample, what was found and what was wanted.
    """

    def refuse(row: int, message: str) -> UnsoundError:
        fix = "report it to the authors of the attack; leave it out meanwhile"
        where = f"attack {attack}, sample {ids[row]}"
        return UnsoundError(message, code="E09", where=where, fix=fix)

    if found.shape != x.shape:
        message = f"the attack returned shape {list(found.shape)}, wanted {list(x.shape)}"
        raise refuse(0, message)
    found, x = found.detach().cpu(), x.detach().cpu()
    finite = found.flatten(1).isfinite().all(1)
    if not bool(finite.all()):
        raise refuse(_first(~finite), "the attack returned values that are not finite")
    if domain is not None:
        _check_domain(found, domain, refuse)
    norms = exact_norm(found.double() - x.double(), norm)
    limit = radius
    if math.isfinite(radius):
        limit += slack(radius, norm, size=x[0].numel(), largest=float(x.abs().max()))
    if bool((norms > limit).any()):
        row = _first(norms > limit)
        message = f"the {norm} norm is {float(norms[row]):.8g}, above the radius {radius:.8g}"
        raise refuse(row, message)
    return norms


def _check_domain(
    found: Tensor, domain: Domain, refuse: Callable[[int, str], UnsoundError]
) -> None:
    flat = found.double().flatten(1)
    room = RELATIVE * domain.span
    low, high = flat.amin(1), flat.amax(1)
    outside = (low < domain.low - room) | (high > domain.high + room)
    if bool(outside.any()):
        row = _first(outside)
        reach = f"[{float(low[row]):.8g}, {float(high[row]):.8g}]"
        raise refuse(row, f"lies in {reach}, outside the domain [{domain.low:g}, {domain.high:g}]")


@torch.no_grad()
def judge_logits(network: Network, x: Tensor, y: Tensor) -> Verdicts:
    """Which stored inputs a fresh forward classifies wrongly, whatever they are batched with.

    Rounding differs between batches of different sizes: a sample whose two leading logits are too
    near to call is judged again alone, and by that forward only.

    Args:
        network: Clean network from inputs to logits [B, K], float32, in eval mode.
        x: Inputs [B, ...] on its device.
        y: True classes [B].
    """
    logits = network(x).double().cpu()
    own = y.cpu()[:, None]
    margins = _margins(logits, own)
    unclear = ~(margins.abs() > CLEAR * logits.abs().amax(1))
    for row in unclear.nonzero()[:, 0].tolist():
        logits[row] = network(x[row : row + 1]).double().cpu()[0]
    finite = logits.isfinite().all(1)
    return Verdicts(broken=(logits.argmax(1) != own[:, 0]) | ~finite, finite=finite)


def _margins(logits: Tensor, own: Tensor) -> Tensor:
    """Logit of the true class minus the largest other one [B]; NaN where one is not finite."""
    if logits.shape[1] < 2:
        return torch.full((len(logits),), torch.nan, dtype=logits.dtype)
    others = logits.scatter(1, own, -torch.inf).amax(1)
    return logits.gather(1, own)[:, 0] - others


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0, 0])
