"""U-Net for images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advdiff_core.backbones.layers import (
    Condition,
    ResBlock,
    SelfAttention,
    added_parts,
    group_norm,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32, image_shape, num_labels, zeroed
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["UNet"]


Resample = Literal["none", "down", "up"]


@frozen
class BlockShape:
    """What one block of the network does.

    Attributes:
        name: Tap name: part of the net, level (0 is the full size), number.
        inner: Channels it reads, those of a skip included.
        outer: Channels it gives.
        size: Height and width it gives.
        resample: What it does first: "down" halves, "up" goes to `size`.
        skip: True if it also reads the output of the encoder block it mirrors.
    """

    name: str
    inner: int
    outer: int
    size: tuple[int, int]
    resample: Resample = "none"
    skip: bool = False


def block_shapes(size: tuple[int, int], channels: list[int], blocks: int) -> list[BlockShape]:
    """The blocks of a U-Net in forward order.

    Args:
        size: Height and width of the images; odd sizes are halved upwards.
        channels: Channels of each level, the full size first.
        blocks: Blocks per level in encoder and decoder each.
    """
    last, width = len(channels) - 1, channels[0]
    down: list[BlockShape] = []
    for level, outer in enumerate(channels):
        if level:
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        for n in range(blocks):
            step: Resample = "down" if level and not n else "none"
            down.append(BlockShape(f"down.{level}.{n}", width, outer, size, step))
            width = outer
    middle = [BlockShape(f"mid.{n}", width, width, size) for n in range(2)]
    up: list[BlockShape] = []
    for mirrored in reversed(down):
        level, n = divmod(len(down) - 1 - len(up), blocks)
        step = "up" if level < last and n == blocks - 1 else "none"
        name, outer = f"up.{level}.{blocks - 1 - n}", mirrored.outer
        up.append(BlockShape(name, width + outer, outer, mirrored.size, step, skip=True))
        width = outer
    return down + middle + up


class Block(nn.Module):
    """Resampling (where due), residual block, attention (where asked for)."""

    def __init__(self, shape: BlockShape, embedding: int, config: Any) -> None:
        super().__init__()
        self.shape = shape
        kept = shape.inner - shape.outer if shape.skip else shape.inner
        self.resample: nn.Module = nn.Identity()
        if shape.resample != "none":
            stride = 2 if shape.resample == "down" else 1
            self.resample = nn.Conv2d(kept, kept, 3, stride, padding=1)
        self.res = ResBlock(shape.inner, shape.outer, embedding, dropout=config.dropout)
        self.attention: nn.Module = nn.Identity()
        if max(shape.size) in config.attention:
            kernel = config.attention_kernel
            self.attention = SelfAttention(shape.outer, config.head_channels, kernel=kernel)

    def forward(self, x: Tensor, embedding: Tensor, skip: Tensor | None) -> Tensor:
        """Output [B, outer, H, W]."""
        if self.shape.resample == "up":
            x = F.interpolate(x, size=self.shape.size, mode="nearest")
        x = self.resample(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        out: Tensor = self.attention(self.res(x, embedding))
        return out


class UNet(Backbone):
    """U-Net for images from 8x8 up: residual blocks, attention, noise-level and class embedding.

    An encoder and a decoder of `blocks` residual blocks per level, joined by one skip per block,
    after Ho et al. (2020) and Dhariwal & Nichol (2021). Taps: `down.<level>.<n>`, `mid.<n>`,
    `up.<level>.<n>`; level 0 is the full size. Any size works; odd sizes are halved upwards.

    Attributes:
        supports_double_backward: False with attention whose kernel is not "math".
    """

    @settings
    class Settings:
        """Keys of `use = "unet"`."""

        channels: int = setting(32, help="channels at full size", ge=4, le=4096)
        channel_mult: tuple[int, ...] = setting(
            (1, 2, 2), help="times `channels`, level by level", ge=1
        )
        blocks: int = setting(2, help="residual blocks per level, each way", ge=1, le=64)
        attention: tuple[int, ...] = setting(
            (16,), help="sizes (the longer side) with self-attention", ge=1, unit="pixels"
        )
        attention_kernel: str = setting(
            "auto",
            help="fused: fast on GPUs; math: allows second derivatives; auto: math on the CPU",
            choices=("auto", "fused", "math"),
        )
        head_channels: int = setting(32, help="least channels of an attention head", ge=1)
        dropout: float = setting(0.0, help="share of features dropped in training", ge=0, lt=1)
        conditional: bool = setting(False, help="embed class labels; else they are ignored")
        classes: int = setting(0, help="classes if conditional; 0: as many as the data have", ge=0)
        label_dropout: float = setting(
            0.0, help="share of labels replaced by `no label` in training", ge=0, le=1
        )
        guided: bool = setting(False, help="embed the strength of guidance it is to have inside")
        learn_sigma: bool = setting(False, help="a head for the variance of a reverse step, too")
        checkpoint_blocks: bool = setting(
            False, help="recompute each block in the backward: less memory, a third more time"
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        colours, *size = image_shape(build, "unet")
        channels = [settings.channels * m for m in settings.channel_mult]
        width = 4 * settings.channels
        classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        self.condition = Condition(
            width,
            features=2 * settings.channels,
            c_noise=build.c_noise,
            classes=classes,
            label_dropout=settings.label_dropout,
            guided=settings.guided,
        )
        self.classes, self.guided = classes, settings.guided
        self.added = added_parts(guided=settings.guided, learn_sigma=settings.learn_sigma)
        self.conv_in = nn.Conv2d(colours, channels[0], 3, padding=1)
        shapes = block_shapes((size[0], size[1]), channels, settings.blocks)
        self.blocks = nn.ModuleList(Block(shape, width, settings) for shape in shapes)
        self.norm_out = group_norm(channels[0])
        self.conv_out = zeroed(nn.Conv2d(channels[0], colours, 3, padding=1))
        self.learns_sigma = settings.learn_sigma
        self.variance: nn.Module | None = None
        if settings.learn_sigma:
            self.variance = zeroed(nn.Conv2d(channels[0], colours, 3, padding=1))
        self._shapes = tuple(shapes)
        attends = any(isinstance(module, SelfAttention) for module in self.modules())
        self.supports_double_backward = not attends or settings.attention_kernel == "math"

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.dropout > 0 or self.condition.drops_labels

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Output of every block, in forward order."""
        return {s.name: TapInfo(width=s.outer, size=s.size) for s in self._shapes}

    def forward(  # noqa: PLR0913 - one forward of a network.
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        guidance: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the network on images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(s.name for s in self._shapes), self.build.path)
        embedding = self.condition(c_noise, labels, x, guidance)
        h = self.conv_in(x)
        skips: list[Tensor] = []
        features: dict[str, Tensor] = {}
        for shape, block in zip(self._shapes, self.blocks, strict=True):
            h = self._run(block, h, embedding, skips.pop() if shape.skip else None)
            if shape.name.startswith("down"):
                skips.append(h)
            if shape.name in taps:
                features[shape.name] = h
            if shape.name == stop_at:
                return BackboneOutput(None, features)
        last = F.silu(self.norm_out(h))
        variance = None if self.variance is None else at_least_fp32(self.variance(last))
        return BackboneOutput(at_least_fp32(self.conv_out(last)), features, variance)

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor, skip: Tensor | None) -> Any:
        if self.settings.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, h, embedding, skip, use_reentrant=False)
        return block(h, embedding, skip)
