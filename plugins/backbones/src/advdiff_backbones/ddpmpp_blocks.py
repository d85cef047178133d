"""Blocks of `ddpmpp-unet`, and where they stand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor, nn

from advdiff_backbones.layers import (
    group_norm,
)
from advdiff_core.layers import attend

__all__ = [
    "ALMOST_ZERO",
    "EPS",
    "Block",
    "BlockShape",
    "conv",
    "decoder_shapes",
    "encoder_shapes",
    "named",
    "wave",
    "xavier",
]


EPS = 1e-6
MAX_PERIOD = 10_000.0
#: Gain of layers that end a branch, and of those that make queries, keys and values.
ALMOST_ZERO, ATTENTION = 1e-5, math.sqrt(0.2)


def xavier(layer: Any, gain: float = 1.0) -> Any:
    """The layer with Glorot-uniform weights times `gain`, and a bias of zero."""
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(inner: int, outer: int, kernel: int, gain: float = 1.0) -> Any:
    """A convolution that keeps the size."""
    return xavier(nn.Conv2d(inner, outer, kernel, padding=kernel // 2), gain)


class ResampledConv(nn.Conv2d):
    """A convolution after a resampling by the box filter [1, 1]: means of four, or four copies.

    The filter is a buffer because checkpoints hold it. It is not read: pooling and copying are
    many times faster than convolving with it, and DDPM++ has no other (one of another size is
    refused when it is loaded).
    """

    def __init__(self, inner: int, outer: int, kernel: int, *, up: bool) -> None:
        super().__init__(inner, outer, kernel, padding=kernel // 2)
        self.up = up
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))
        xavier(self)

    def forward(self, x: Tensor) -> Tensor:
        """Output of twice or half the size of `x` [B, C, H, W]."""
        if self.up:
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        return super().forward(F.avg_pool2d(x, 2))


@frozen(kw_only=True)
class BlockShape:
    """What one block of the network does.

    Attributes:
        name: Its name inside encoder or decoder.
        inner: Channels it reads, those of a skip included.
        outer: Channels it gives.
        size: Height and width it gives.
        resample: "down", "up" or "".
        attention: Whether attention ends it.
        skip: Whether it also reads a tensor of the encoder.
    """

    name: str
    inner: int
    outer: int
    size: tuple[int, int]
    resample: str = ""
    attention: bool = False
    skip: bool = False


def encoder_shapes(size: tuple[int, int], config: Any) -> Iterator[BlockShape]:
    """Blocks of the encoder after its first convolution, in forward order."""
    width = config.channels
    for level, mult in enumerate(config.channel_mult):
        if level:
            size = (size[0] // 2, size[1] // 2)
            down = f"{named(size)}_down"
            yield BlockShape(name=down, inner=width, outer=width, size=size, resample="down")
        for n in range(config.blocks):
            inner, width = width, config.channels * mult
            yield BlockShape(
                name=f"{named(size)}_block{n}", inner=inner, outer=width, size=size,
                attention=max(size) in config.attention,
            )  # fmt: skip


def decoder_shapes(encoder: list[BlockShape], config: Any) -> Iterator[BlockShape]:
    """Blocks of the decoder, in forward order; each level reads one more skip than it has."""
    skips = [config.channels, *(shape.outer for shape in encoder)]
    width, size = encoder[-1].outer, encoder[-1].size
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        middle = level == len(config.channel_mult) - 1
        if not middle:
            size = (2 * size[0], 2 * size[1])
        same = BlockShape(name=named(size), inner=width, outer=width, size=size)
        if middle:
            yield evolve(same, name=f"{named(size)}_in0", attention=True)
            yield evolve(same, name=f"{named(size)}_in1")
        else:
            yield evolve(same, name=f"{named(size)}_up", resample="up")
        for n in range(config.blocks + 1):
            inner, width = width + skips.pop(), config.channels * mult
            attention = n == config.blocks and max(size) in config.attention
            yield BlockShape(
                name=f"{named(size)}_block{n}", inner=inner, outer=width, size=size,
                attention=attention, skip=True,
            )  # fmt: skip


def named(size: tuple[int, int]) -> str:
    """How EDM calls a height and width."""
    return f"{size[0]}x{size[1]}"


class Block(nn.Module):
    """Residual block with an embedding added between its convolutions; attention where asked for.

    Branch and skip are summed and scaled by sqrt(1/2), so that the variance stays.
    """

    def __init__(self, shape: BlockShape, embedding: int, config: Any) -> None:
        super().__init__()
        inner, outer, resample = shape.inner, shape.outer, shape.resample
        self.kernel = config.attention_kernel
        self.norm0 = group_norm(inner, eps=EPS, least=4)
        self.conv0 = _conv(inner, outer, 3, resample)
        self.affine = xavier(nn.Linear(embedding, outer))
        self.norm1 = group_norm(outer, eps=EPS, least=4)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = conv(outer, outer, 3, ALMOST_ZERO)
        self.skip: nn.Module = nn.Identity()
        if resample or inner != outer:
            self.skip = _conv(inner, outer, 1, resample)
        self.attends = shape.attention
        if shape.attention:
            self.norm2 = group_norm(outer, eps=EPS, least=4)
            self.qkv = conv(outer, 3 * outer, 1, ATTENTION)
            self.proj = conv(outer, outer, 1, ALMOST_ZERO)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output [B, outer, H, W] for `x` [B, inner, H, W] and an embedding [B, D]."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = h + self.affine(embedding)[:, :, None, None].to(h.dtype)
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        h = (self.skip(x) + h) * math.sqrt(0.5)
        return (h + self._attention(h)) * math.sqrt(0.5) if self.attends else h

    def _attention(self, x: Tensor) -> Tensor:
        # The three parts of a channel lie side by side in the checkpoints: [C, 3], not [3, C].
        parts = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).permute(2, 0, 3, 1)
        q, k, v = parts.unsqueeze(2)
        mixed = attend(q, k, v, self.kernel).squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj(mixed)
        return out


def _conv(inner: int, outer: int, kernel: int, resample: str) -> Any:
    if resample:
        return ResampledConv(inner, outer, kernel, up=resample == "up")
    return conv(inner, outer, kernel)


def wave(level: Tensor, width: int) -> Tensor:
    """Sine and cosine features of noise levels, in the order and with the rates of EDM.

    Args:
        level: Noise levels [B].
        width: Even number of features.

    Returns:
        Features [B, width]: sines, then cosines; rates from 1 to exactly 1 / 10,000.
    """
    steps = torch.linspace(0, 1, width // 2, device=level.device, dtype=level.dtype)
    phase = level[:, None] * torch.exp(steps * -math.log(MAX_PERIOD))
    return torch.cat([phase.sin(), phase.cos()], dim=1)
