"""What targets and the alignment term do with features at a tap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advdiff_core.errors import Fault, RecipeError, nearest
from advdiff_core.interfaces.component import Build
from advdiff_core.types import TapInfo

__all__ = ["channel_scale", "check_tap", "massive_channels", "pooled", "tokens"]


def check_tap(build: Build, taps: Mapping[str, TapInfo], tap: str, role: str) -> TapInfo:
    """The tap of a model.

    Args:
        build: What the asker was built with.
        taps: Taps that there are.
        tap: Name of the one that is wanted, from the key `tap`.
        role: The model, for the message.

    Raises:
        RecipeError: R11 if it is missing, with all that there are.
    """
    if tap in taps:
        return taps[tap]
    near = nearest(tap, taps)
    known = ", ".join(taps) or "none"
    message = f"model {role!r} has no tap {tap!r}; there are {known}"
    fix = f"did you mean {near!r}?" if near else "choose one of these"
    raise RecipeError([Fault(code="R11", key=f"{build.path}.tap", message=message, fix=fix)])


def tokens(features: Tensor) -> Tensor:
    """Features [B, C, H, W], [B, N, D] or [B, D] as tokens [B, N, D], row by row."""
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    return features if features.dim() == 3 else features[:, None]


def pooled(features: Tensor) -> Tensor:
    """Mean over positions or tokens [B, D] of features [B, C, H, W], [B, N, D] or [B, D]."""
    return tokens(features).mean(1)


def massive_channels(features: Tensor, factor: float) -> tuple[int, ...]:
    """Channels whose mean magnitude is over `factor` times the median of all channels.

    Diffusion transformers keep a few channels of the residual stream at huge values whatever the
    image, position and noise level (Gan et al., 2025); they drown the rest in a cosine.

    Args:
        features: Features [B, C, H, W], [B, N, D] or [B, D].
        factor: How far above the median a channel has to lie.
    """
    size = tokens(features).abs().double().mean((0, 1))
    # A channel that is always zero makes no other one massive.
    found = (size > factor * size.median()) & (size > 0)
    return tuple(found.nonzero().flatten().tolist())


def channel_scale(width: int, zeroed: tuple[int, ...]) -> Tensor:
    """Factors [D] of channels: 0 for those in `zeroed`, else 1."""
    scale = torch.ones(width)
    scale[list(zeroed)] = 0.0
    return scale
