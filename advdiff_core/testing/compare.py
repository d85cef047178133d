"""Comparisons that raise findings."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.testing.findings import shown, wrong

__all__ = ["finite", "largest_difference", "same_bits", "same_values"]


def same_bits(found: Tensor, wanted: Tensor, *, what: str, mend: str) -> None:
    """Find fault with `found` unless it equals `wanted` bit for bit; any shape."""
    if found.shape != wanted.shape:
        raise wrong(f"{what} of shape {list(found.shape)}", wanted=list(wanted.shape), mend=mend)
    if not torch.equal(found.nan_to_num(nan=1e30), wanted.nan_to_num(nan=1e30)):
        gap = largest_difference(found, wanted)
        raise wrong(f"{what}: a difference of {shown(gap)}", wanted="no difference", mend=mend)


def same_values(  # noqa: PLR0913 - tensors, words and tolerances.
    found: Tensor, wanted: Tensor, *, what: str, mend: str, rtol: float = 1e-4, atol: float = 1e-6
) -> None:
    """Find fault with `found` unless it equals `wanted` up to rounding; any shape."""
    if found.shape != wanted.shape:
        raise wrong(f"{what} of shape {list(found.shape)}", wanted=list(wanted.shape), mend=mend)
    gap = largest_difference(found, wanted)
    size = float(wanted.detach().double().abs().max()) if wanted.numel() else 0.0
    if not gap <= atol + rtol * size:
        text = f"{what}: a difference of {shown(gap)} in values up to {shown(size)}"
        raise wrong(text, wanted=f"at most {shown(atol + rtol * size)}", mend=mend)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference; NaN beside NaN counts as none, any shape."""
    if a.numel() == 0:
        return 0.0
    x, y = a.detach().double(), b.detach().double()
    gap = (x - y).abs()
    return float(torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, gap).max())


def finite(tensor: Tensor, *, what: str, mend: str) -> None:
    """Find fault with infinities and NaN; any shape."""
    bad = ~torch.isfinite(tensor.detach())
    if bool(bad.any()):
        first = float(tensor.detach()[bad].flatten()[0])
        text = f"{what} with {int(bad.sum())} entries like {first}"
        raise wrong(text, wanted="finite numbers", mend=mend)
