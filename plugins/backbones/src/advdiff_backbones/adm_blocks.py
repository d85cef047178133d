"""Blocks of `adm-unet`, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from advdiff_backbones.layers import (
    group_norm,
)
from advdiff_core.layers import (
    attend,
    zeroed,
)

__all__ = [
    "Attention",
    "Downsample",
    "ResBlock",
    "Stage",
    "StageShape",
    "Upsample",
    "input_shapes",
    "output_shapes",
]


@frozen(kw_only=True)
class StageShape:
    """What one entry of `input_blocks` or `output_blocks` does.

    Attributes:
        name: Its place, for example "input_blocks.3".
        inner: Channels it reads, those of a skip included.
        outer: Channels it gives.
        size: Height and width it gives.
        resample: "down" (the whole stage), "up" (after its block) or "".
        attention: Whether attention follows its block.
    """

    name: str
    inner: int
    outer: int
    size: tuple[int, int]
    resample: str = ""
    attention: bool = False


def input_shapes(size: tuple[int, int], config: Any) -> Iterator[StageShape]:
    """Stages of the encoder after its first convolution, in forward order."""
    width, number = config.channels * config.channel_mult[0], 0
    for level, mult in enumerate(config.channel_mult):
        if level:
            number, size = number + 1, (size[0] // 2, size[1] // 2)
            name = f"input_blocks.{number}"
            yield StageShape(name=name, inner=width, outer=width, size=size, resample="down")
        for _ in range(config.blocks):
            number += 1
            inner, width = width, config.channels * mult
            yield StageShape(
                name=f"input_blocks.{number}", inner=inner, outer=width, size=size,
                attention=max(size) in config.attention,
            )  # fmt: skip


def output_shapes(encoder: list[StageShape], config: Any) -> Iterator[StageShape]:
    """Stages of the decoder, in forward order; each reads a skip, the first convolution's last."""
    skips = [config.channels * config.channel_mult[0], *(shape.outer for shape in encoder)]
    width, size, number = encoder[-1].outer, encoder[-1].size, 0
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        attention = max(size) in config.attention
        for n in range(config.blocks + 1):
            inner, width = width + skips.pop(), config.channels * mult
            up = level > 0 and n == config.blocks
            size = (2 * size[0], 2 * size[1]) if up else size
            yield StageShape(
                name=f"output_blocks.{number}", inner=inner, outer=width, size=size,
                resample="up" if up else "", attention=attention,
            )  # fmt: skip
            number += 1


def resampled(x: Tensor, resample: str) -> Tensor:
    """`x` [B, C, H, W] of half (means) or twice (copies) the size, or as it is."""
    if resample == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2, mode="nearest") if resample else x


class ResBlock(nn.Module):
    """Residual block, modulated by an embedding, that may also halve or double the size.

    Scale and shift after the second norm (ADM, section 3), or with `scale_shift = false` a shift
    before it.
    """

    def __init__(
        self, inner: int, outer: int, embedding: int, config: Any, resample: str = ""
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, config.scale_shift
        self.in_layers = nn.Sequential(
            group_norm(inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        modulation = nn.Linear(embedding, (1 + config.scale_shift) * outer)
        self.emb_layers = nn.Sequential(nn.SiLU(), modulation)
        self.out_layers = nn.Sequential(
            group_norm(outer),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zeroed(nn.Conv2d(outer, outer, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Output [B, outer, H', W'] for `x` [B, inner, H, W] and an embedding [B, D]."""
        norm, act, conv = self.in_layers
        h = conv(resampled(act(norm(x)), self.resample))
        modulation = self.emb_layers(embedding)[:, :, None, None].to(h.dtype)
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + modulation)
        for layer in rest:
            h = layer(h)
        out: Tensor = self.skip_connection(resampled(x, self.resample)) + h
        return out


class Attention(nn.Module):
    """Residual self-attention over the positions of an image; its output layer starts at zero.

    Args:
        channels: Channels of the input.
        heads: Number of heads.
        split: How queries, keys and values lie in the weights: "heads-first" (heads, then the three
            parts of each) or "parts-first" (the three parts, then heads).
        kernel: See `advdiff_core.layers.attend`.
    """

    def __init__(self, channels: int, heads: int, split: str, kernel: str) -> None:
        super().__init__()
        self.heads, self.split, self.kernel = heads, split, kernel
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, C, H, W] for `x` [B, C, H, W]."""
        parts = self.qkv(self.norm(x).flatten(2))
        if self.split == "heads-first":
            parts = parts.unflatten(1, (self.heads, 3, -1)).transpose(1, 2)
        else:
            parts = parts.unflatten(1, (3, self.heads, -1))
        q, k, v = parts.transpose(-2, -1).unbind(1)
        mixed = attend(q, k, v, self.kernel).transpose(-2, -1).flatten(1, 2)
        out: Tensor = x + self.proj_out(mixed).reshape(x.shape)
        return out


class Downsample(nn.Module):
    """A convolution that halves the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, C, H / 2, W / 2]."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Twice the size, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Output [B, C, 2 H, 2 W]."""
        out: Tensor = self.conv(resampled(x, "up"))
        return out


class Stage(nn.Sequential):
    """Layers in a row, of which residual blocks read the embedding too."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        """Output [B, ...] for `x` [B, C, H, W] and an embedding [B, D]."""
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x
