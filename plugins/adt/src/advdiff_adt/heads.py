"""Small convolutional heads on maps of frozen features."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_adt.spectral import normed
from advdiff_core.layers import GroupNorm

__all__ = ["Head", "as_map", "leaky"]

#: Slope of the activation on its left (StyleGAN-T).
SLOPE = 0.2


class Head(nn.Module):
    """A 1x1 convolution, a residual 3x3 convolution and a 1x1 convolution that ends it.

    The blocks of StyleGAN-T (Sauer et al. 2023), on maps instead of rows of tokens. Their batch
    norm over virtual batches of 8 is a group norm of one group here: a score depends on its own
    image alone.

    Args:
        channels: Channels of the features.
        width: Channels inside.
        outputs: Channels of what comes out.
        spectral: Normalise weights by their largest singular value.
    """

    def __init__(self, channels: int, width: int, outputs: int, *, spectral: bool) -> None:
        super().__init__()
        self.enter = normed(nn.Conv2d(channels, width, 1), spectral=spectral)
        self.norm_enter = GroupNorm(1, width)
        self.mix = normed(nn.Conv2d(width, width, 3, padding=1), spectral=spectral)
        self.norm_mix = GroupNorm(1, width)
        self.leave = normed(nn.Conv2d(width, outputs, 1), spectral=spectral)

    def forward(self, features: Tensor) -> Tensor:
        """Maps [B, outputs, H, W] of features [B, C, H, W]."""
        h = leaky(self.norm_enter(self.enter(features)))
        h = (h + leaky(self.norm_mix(self.mix(h)))) / math.sqrt(2)
        found: Tensor = self.leave(h)
        return found


def leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of any shape."""
    return F.leaky_relu(x, SLOPE)


def as_map(features: Tensor) -> Tensor:
    """Features at a tap as a map [B, C, H, W].

    Tokens [B, N, C] that fill a square lie in it row by row, as those of images do; other numbers
    of tokens are one row, and a vector [B, C] is one position.
    """
    if features.dim() == 4:
        return features
    if features.dim() == 2:
        return features[:, :, None, None]
    count = features.shape[1]
    side = math.isqrt(count)
    height = side if side * side == count else 1
    return features.transpose(1, 2).reshape(len(features), -1, height, count // height)
