"""What a denoiser predicts: conversions between eps, x0, v and flow, and EDM preconditioning.

Every prediction is a linear functional `p * eps + q * x0` of the two unknowns of
`x_t = alpha * x0 + sigma * eps`:

| kind | p     | q      | determinant `p * alpha - q * sigma` |
| eps  | 1     | 0      | alpha                               |
| x0   | 0     | 1      | -sigma                              |
| v    | alpha | -sigma | alpha^2 + sigma^2                   |
| flow | 1     | -1     | alpha + sigma                       |

Together with `x_t` a source prediction fixes both unknowns whenever its determinant is not zero, so
for any scales, variance preserving or not, Cramer's rule gives

    target = (det_target * source + (q_target * p_source - p_target * q_source) * x_t) / det_source

In particular `x0 = (alpha * x_t - sigma * v) / (alpha^2 + sigma^2)`, which is the familiar
`alpha * x_t - sigma * v` (Salimans and Ho, 2022) only where `alpha^2 + sigma^2 = 1`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.types import PredictionKind

__all__ = [
    "EDMCoefficients",
    "convert",
    "conversion",
    "edm_coefficients",
    "edm_scales",
    "edm_target",
    "score",
]


def convert(  # noqa: PLR0913 - the conversion is a function of exactly these.
    value: Tensor,
    *,
    source: PredictionKind,
    target: PredictionKind,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
) -> Tensor:
    """Turn a prediction of one kind into another, exactly, for any signal and noise scale.

    Where the source says nothing of the target (eps at alpha = 0, x0 at sigma = 0) the determinant
    is floored at the machine epsilon: the result is finite, and holds amplified rounding as it
    must. The v and flow kinds have no such point.

    Args:
        value: Prediction [B, ...] of kind `source`.
        source: What `value` predicts.
        target: What is wanted.
        x_t: Input the prediction was made for [B, ...].
        alpha: Signal scale [B, 1, ...].
        sigma: Noise scale [B, 1, ...].

    Returns:
        Prediction [B, ...] of kind `target`; `value` itself if the kinds are equal. Floating types
        promote as in torch, to float32 at least.
    """
    if source == target:
        return value
    of_value, of_x = conversion(source, target, alpha=alpha, sigma=sigma)
    return of_value * value + of_x * x_t


def conversion(
    source: PredictionKind, target: PredictionKind, *, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Coefficients `(a, b)` of `target = a * source + b * x_t`, of the shape of `alpha`.

    Args:
        source: Kind of the prediction at hand.
        target: Kind that is wanted.
        alpha: Signal scale, any shape.
        sigma: Noise scale, same shape.
    """
    alpha, sigma = _precise(alpha), _precise(sigma)
    p_source, q_source, det_source = _functional(source, alpha, sigma)
    p_target, q_target, det_target = _functional(target, alpha, sigma)
    det_source = _away_from_zero(det_source)
    return det_target / det_source, (q_target * p_source - p_target * q_source) / det_source


def score(
    value: Tensor, *, source: PredictionKind, x_t: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """Score `grad log p(x_t) = (alpha * x0_hat - x_t) / sigma^2 = -eps_hat / sigma` [B, ...].

    Args:
        value: Prediction [B, ...] of kind `source`.
        source: What `value` predicts.
        x_t: Input the prediction was made for [B, ...].
        alpha: Signal scale [B, 1, ...].
        sigma: Noise scale [B, 1, ...].
    """
    eps_hat = convert(value, source=source, target="eps", x_t=x_t, alpha=alpha, sigma=sigma)
    return -eps_hat / _away_from_zero(_precise(sigma))


def _functional(
    kind: PredictionKind, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`(p, q, determinant)` of a kind; see the table at the top."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    if kind == "eps":
        return one, zero, alpha
    if kind == "x0":
        return zero, one, -sigma
    if kind == "v":
        return alpha, -sigma, alpha.square() + sigma.square()
    if kind == "flow":
        return one, -one, alpha + sigma
    message = f"unknown kind of prediction {kind!r}; wanted eps, x0, v or flow"
    raise ValueError(message)


def _precise(scale: Tensor) -> Tensor:
    # In bf16 a quotient of scales would lose all but two digits.
    return scale.to(torch.promote_types(scale.dtype, torch.float32))


def _away_from_zero(divisor: Tensor) -> Tensor:
    floor = torch.finfo(divisor.dtype).eps
    return torch.copysign(divisor.abs().clamp_min(floor), divisor)


class EDMCoefficients(NamedTuple):
    """Preconditioning of a denoiser: `D(x) = c_skip * x + c_out * F(c_in * x, c_noise)`.

    Attributes:
        c_skip: Share of the input in the output.
        c_out: Scale of the network's output.
        c_in: Scale that gives the network's input unit variance.
        c_noise: Noise-level input of the network.
    """

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


def edm_coefficients(sigma_over_alpha: Tensor, sigma_data: float) -> EDMCoefficients:
    """Preconditioning of Karras et al. (2022), table 1, last column, for the input `x_t / alpha`.

    Args:
        sigma_over_alpha: Noise level sigma / alpha, any shape.
        sigma_data: Standard deviation of the data.
    """
    return edm_scales(torch.ones_like(sigma_over_alpha), sigma_over_alpha, sigma_data)


def edm_scales(alpha: Tensor, sigma: Tensor, sigma_data: float) -> EDMCoefficients:
    """The preconditioning of `edm_coefficients`, rewritten for the input `x_t` itself.

    `c_skip` and `c_in` have absorbed the division by alpha, so that all but `c_noise` stay exact
    where alpha = 0; there `c_noise = log(sigma / alpha) / 4` is held finite by the machine epsilon.

    Args:
        alpha: Signal scale, any shape.
        sigma: Noise scale, same shape.
        sigma_data: Standard deviation of the data.
    """
    alpha, sigma = _precise(alpha), _precise(sigma)
    total = (sigma.square() + (alpha * sigma_data).square()).sqrt()
    ratio = _away_from_zero(sigma) / _away_from_zero(alpha)
    return EDMCoefficients(
        c_skip=alpha * sigma_data**2 / total.square(),
        c_out=sigma * sigma_data / total,
        c_in=1 / total,
        c_noise=ratio.log() / 4,
    )


def edm_target(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """What the preconditioned network has to output: `(x0 - c_skip * x_t) / c_out` [B, ...].

    The squared error of the denoiser, `(x0_hat - x0)^2`, is `c_out^2` times the squared error
    of the network against this target, which has unit variance (Karras et al., 2022, eq. 8).

    Args:
        x0: Clean samples [B, ...].
        x_t: Noised samples [B, ...].
        alpha: Signal scale [B, 1, ...].
        sigma: Noise scale [B, 1, ...].
        sigma_data: Standard deviation of the data.
    """
    c = edm_scales(alpha, sigma, sigma_data)
    return (x0 - c.c_skip * x_t) / _away_from_zero(c.c_out)
