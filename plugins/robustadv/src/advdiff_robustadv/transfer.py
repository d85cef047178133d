"""What equivariance asks of each parametrization; the derivation is in docs/equivariance.md."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.math.parametrization import edm_scales

__all__ = ["equivariant_shift"]


def equivariant_shift(
    kind: str, delta: Tensor, *, alpha: Tensor, sigma: Tensor, sigma_data: float = 1.0
) -> Tensor:
    """How far an output must move with its input for `x0_hat` to stay [B, ...] (DERIVED).

    A prediction `p eps + q x0` moves by `p delta / sigma`, as x0 stays and eps explains the move:
    eps by `delta / sigma`, x0 not at all, v by `alpha delta / sigma`, flow by `delta / sigma`. The
    raw output F of EDM, with `x0 = c_skip x_t + c_out F`, moves by `-c_skip delta / c_out`. On any
    schedule, variance preserving or not.

    Args:
        kind: "eps", "x0", "v", "flow" or "edm".
        delta: Move of the input in units of `x_t` [B, ...].
        alpha: Signal scale [B, 1, ...].
        sigma: Noise scale [B, 1, ...].
        sigma_data: Standard deviation of the data that an EDM network assumes.

    Raises:
        ValueError: For another kind.
    """
    if kind == "edm":
        c = edm_scales(alpha, sigma, sigma_data)
        return -c.c_skip / c.c_out * delta
    shares = {
        "eps": torch.ones_like(alpha), "flow": torch.ones_like(alpha),
        "x0": torch.zeros_like(alpha), "v": alpha,
    }  # fmt: skip
    if kind not in shares:
        message = f"unknown parametrization {kind!r}; wanted eps, x0, v, flow or edm"
        raise ValueError(message)
    return shares[kind] * delta / sigma
