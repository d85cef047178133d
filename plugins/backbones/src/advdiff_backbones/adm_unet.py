"""The U-Net of ADM (Dhariwal & Nichol, 2021) and of improved DDPM (Nichol & Dhariwal, 2021).

Modules and tensors are called as in guided-diffusion's checkpoints, which load by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_backbones.adm_blocks import (
    Attention,
    Downsample,
    ResBlock,
    Stage,
    StageShape,
    Upsample,
    input_shapes,
    output_shapes,
)
from advdiff_backbones.layers import (
    DiffusionSettings,
    Trail,
    divides,
    drop_labels,
    group_norm,
    noise_levels,
    refused,
    run_block,
    weight_type,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import (
    at_least_fp32,
    image_shape,
    num_labels,
    sinusoidal,
    zeroed,
)
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["ADMUNet"]


class ADMUNet(Backbone):
    """U-Net of ADM (guided diffusion), whose checkpoints load by name.

    Dhariwal & Nichol (2021), section 3; with `scale_shift`, `resample_blocks` and `learn_sigma` as
    they choose it also the network of improved DDPM (Nichol & Dhariwal, 2021) and of AT_Diff. Taps:
    `input_blocks.<n>` (0 is the first convolution), `middle_block`, `output_blocks.<n>`. A missing
    or dropped label adds nothing to the embedding.

    Attributes:
        supports_double_backward: True with the attention kernel "math".
    """

    @settings
    class Settings(DiffusionSettings):
        """Keys of `use = "adm-unet"`."""

        channels: int = setting(128, help="channels at full size", ge=4, le=4096)
        channel_mult: tuple[int, ...] = setting(
            (1, 2, 2, 2), help="times `channels`, level by level", ge=1
        )
        blocks: int = setting(3, help="residual blocks per level of the encoder", ge=1, le=64)
        attention: tuple[int, ...] = setting(
            (16, 8), help="sizes (the longer side) with self-attention", ge=1, unit="pixels"
        )
        head_channels: int = setting(32, help="channels of an attention head", ge=1)
        heads: int = setting(0, help="attention heads; 0: as `head_channels` gives", ge=0)
        attention_split: str = setting(
            "heads-first",
            help="order of queries, keys and values in the weights; parts-first: "
            "guided-diffusion's `use_new_attention_order`",
            choices=("heads-first", "parts-first"),
        )
        scale_shift: bool = setting(True, help="the embedding scales and shifts; else shifts alone")
        resample_blocks: bool = setting(
            True, help="residual blocks change the size; else plain convolutions"
        )
        learn_sigma: bool = setting(
            False, help="as many channels again, for the variance of a reverse step"
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        colours, height, width = image_shape(build, "adm-unet")
        halvings = len(settings.channel_mult) - 1
        divides(build, (height, width), 2**halvings, "channel_mult", "adm-unet")
        self.classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        embedding = 4 * settings.channels
        first = nn.Linear(settings.channels, embedding)
        self.time_embed = nn.Sequential(first, nn.SiLU(), nn.Linear(embedding, embedding))
        self.label_emb = nn.Embedding(self.classes, embedding) if self.classes else None
        self._add_stages(colours, (height, width))
        last = settings.channels * settings.channel_mult[0]
        self.learns_sigma = settings.learn_sigma
        outputs = colours * (1 + settings.learn_sigma)
        final = zeroed(nn.Conv2d(last, outputs, 3, padding=1))
        self.out = nn.Sequential(group_norm(last), nn.SiLU(), final)
        self.supports_double_backward = settings.attention_kernel == "math"

    def _add_stages(self, colours: int, size: tuple[int, int]) -> None:
        config = self.settings
        first = config.channels * config.channel_mult[0]
        encoder = list(input_shapes(size, config))
        decoder = list(output_shapes(encoder, config))
        middle, small = encoder[-1].outer, encoder[-1].size
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(colours, first, 3, padding=1))])
        self.input_blocks.extend(self._stage(shape) for shape in encoder)
        self.middle_block = Stage(
            self._res(middle, middle), self._attention(middle), self._res(middle, middle)
        )
        self.output_blocks = nn.ModuleList(self._stage(shape) for shape in decoder)
        taps = {"input_blocks.0": TapInfo(width=first, size=size)}
        taps |= {s.name: TapInfo(width=s.outer, size=s.size) for s in encoder}
        taps["middle_block"] = TapInfo(width=middle, size=small)
        self._taps = taps | {s.name: TapInfo(width=s.outer, size=s.size) for s in decoder}

    def _stage(self, shape: StageShape) -> Stage:
        inner, outer, plain = shape.inner, shape.outer, not self.settings.resample_blocks
        if shape.resample == "down":
            return Stage(Downsample(outer) if plain else self._res(outer, outer, "down"))
        layers: list[nn.Module] = [self._res(inner, outer)]
        if shape.attention:
            layers.append(self._attention(outer))
        if shape.resample == "up":
            layers.append(Upsample(outer) if plain else self._res(outer, outer, "up"))
        return Stage(*layers)

    def _res(self, inner: int, outer: int, resample: str = "") -> ResBlock:
        return ResBlock(inner, outer, 4 * self.settings.channels, self.settings, resample)

    def _attention(self, channels: int) -> Attention:
        config = self.settings
        key = "heads" if config.heads else "head_channels"
        each = config.heads or config.head_channels
        if channels % each:
            message = f"{each} does not divide the {channels} channels that attention is over"
            raise refused(self.build, key, message, "choose a divisor")
        heads = config.heads or channels // config.head_channels
        return Attention(channels, heads, config.attention_split, config.attention_kernel)

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.dropout > 0 or (self.classes > 0 and self.settings.label_dropout > 0)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Output of every stage, in forward order."""
        return dict(self._taps)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Run the network on images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self._taps), self.build.path)
        embedding = self._embedding(x, c_noise, labels)
        trail = Trail(taps, stop_at)
        h, skips = x, []
        for n, stage in enumerate(self.input_blocks):
            h = self._run(stage, h, embedding)
            skips.append(h)
            if trail.ends(f"input_blocks.{n}", h):
                return BackboneOutput(None, trail.features)
        h = self._run(self.middle_block, h, embedding)
        if trail.ends("middle_block", h):
            return BackboneOutput(None, trail.features)
        for n, stage in enumerate(self.output_blocks):
            h = self._run(stage, torch.cat([h, skips.pop()], dim=1), embedding)
            if trail.ends(f"output_blocks.{n}", h):
                return BackboneOutput(None, trail.features)
        return self._output(at_least_fp32(self.out(h)), trail.features)

    def _output(self, raw: Tensor, features: dict[str, Tensor]) -> BackboneOutput:
        if not self.settings.learn_sigma:
            return BackboneOutput(raw, features)
        mean, variance = raw.chunk(2, dim=1)
        return BackboneOutput(mean, features, variance)

    def _run(self, stage: nn.Module, h: Tensor, embedding: Tensor) -> Any:
        return run_block(stage, h, embedding, recompute=self.settings.checkpoint_blocks)

    def _embedding(self, x: Tensor, c_noise: Tensor | None, labels: Tensor | None) -> Tensor:
        level = noise_levels(self.settings, self.build, c_noise, x)
        features = sinusoidal(level, self.settings.channels)
        h: Tensor = self.time_embed(features.to(weight_type(self.time_embed)))
        if self.label_emb is not None:
            share = self.settings.label_dropout if self.training else 0.0
            found = drop_labels(labels, x, classes=self.classes, share=share)
            known = (found < self.classes)[:, None].to(h.dtype)
            h = h + known * self.label_emb(found.clamp(max=self.classes - 1))
        return h
