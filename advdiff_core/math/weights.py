"""Loss weights as functions of the signal-to-noise ratio, exact in whichever space a loss is taken.

The squared errors of one prediction in different spaces differ by a factor that depends on
`snr = alpha^2 / sigma^2` alone, since `x_t` is known:

    |x0_hat - x0|^2     = |eps_hat - eps|^2 / snr
    |v_hat - v|^2       = |eps_hat - eps|^2 * (1 + snr) / snr        (where alpha^2 + sigma^2 = 1)
    |flow_hat - flow|^2 = |eps_hat - eps|^2 * (1 + 1 / sqrt(snr))^2

A law is defined in the space of its paper; its weight in another space is multiplied by the ratio
of the two factors, so that `weight * squared error` is the same number in each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.types import PredictionKind

__all__ = ["LAWS", "WeightLaw", "error_ratio", "loss_weight"]

WeightLaw = Literal["uniform", "min-snr", "soft-min-snr", "edm", "p2"]

#: Names of the laws.
LAWS: tuple[str, ...] = ("uniform", "min-snr", "soft-min-snr", "edm", "p2")


def loss_weight(  # noqa: PLR0913 - the union of the laws' parameters.
    law: str,
    snr: Tensor,
    space: PredictionKind,
    *,
    gamma: float | None = None,
    k: float = 1.0,
    sigma_data: float = 0.5,
    base: PredictionKind | None = None,
) -> Tensor:
    """Weight of a squared error taken in `space`.

    The laws, each with the space in which its formula holds:

    - uniform, in `space` itself: 1. With `base = "eps"` the loss of Ho et al. (2020) in any space.
    - min-snr, in x0: `min(snr, gamma)`, gamma = 5 (Hang et al., 2023).
    - soft-min-snr, in x0: `snr * gamma / (snr + gamma)`, gamma = 4 (Crowson et al., 2024).
    - edm, in x0: `snr + 1 / sigma_data^2` (Karras et al., 2022, table 1).
    - p2, in eps: `1 / (k + snr)^gamma`, gamma = 1 (Choi et al., 2022).

    Args:
        law: Name of the law.
        snr: `alpha^2 / sigma^2` [B] (any shape); held within [1e-18, 1e18].
        space: What the loss compares: eps, x0, v (variance preserving scales) or flow.
        gamma: Parameter of min-snr, soft-min-snr and p2; None for the value above.
        k: Offset of p2.
        sigma_data: Standard deviation of the data, for edm.
        base: Space in which the law is meant; None for the one above.

    Returns:
        Weights of the shape of `snr`, at least float32.
    """
    if law not in _LAWS:
        message = f"unknown loss weight {law!r}; wanted one of {', '.join(LAWS)}"
        raise ValueError(message)
    rule = _LAWS[law]
    snr = _bounded(snr)
    weight = rule.weight(snr, _Parameters(rule.gamma if gamma is None else gamma, k, sigma_data))
    return weight * error_ratio(snr, base or rule.space or space, space)


class _Parameters(NamedTuple):
    gamma: float
    k: float
    sigma_data: float


class _Rule(NamedTuple):
    space: PredictionKind | None
    gamma: float
    weight: Callable[[Tensor, _Parameters], Tensor]


_LAWS: dict[str, _Rule] = {
    "uniform": _Rule(None, 0.0, lambda snr, _: torch.ones_like(snr)),
    "min-snr": _Rule("x0", 5.0, lambda snr, p: snr.clamp_max(p.gamma)),
    # In this order the product cannot overflow.
    "soft-min-snr": _Rule("x0", 4.0, lambda snr, p: snr * (p.gamma / (snr + p.gamma))),
    "edm": _Rule("x0", 0.0, lambda snr, p: snr + 1 / p.sigma_data**2),
    "p2": _Rule("eps", 1.0, lambda snr, p: (p.k + snr) ** -p.gamma),
}


def error_ratio(snr: Tensor, numerator: PredictionKind, denominator: PredictionKind) -> Tensor:
    """Squared error in one space over that in another, for the same prediction.

    Args:
        snr: `alpha^2 / sigma^2`, any shape.
        numerator: Space of the first error.
        denominator: Space of the second error.
    """
    for space in (numerator, denominator):
        if space not in _ERRORS:
            message = f"unknown loss space {space!r}; wanted one of {', '.join(_ERRORS)}"
            raise ValueError(message)
    snr = _bounded(snr)
    if numerator == denominator:
        return torch.ones_like(snr)
    return _ERRORS[numerator](snr) / _ERRORS[denominator](snr)


#: Squared error in a space for a unit squared error in eps.
_ERRORS: dict[str, Callable[[Tensor], Tensor]] = {
    "eps": torch.ones_like,
    "x0": lambda snr: 1 / snr,
    "v": lambda snr: 1 + 1 / snr,
    "flow": lambda snr: (1 + snr.rsqrt()).square(),
}


def _bounded(snr: Tensor) -> Tensor:
    return snr.to(torch.promote_types(snr.dtype, torch.float32)).clamp(1e-18, 1e18)
