"""The DDPM++ U-Net of Song et al. (2021), in the arrangement of EDM (Karras et al., 2022).

Written from the papers and a table of names and shapes: modules and tensors are called as in EDM's
checkpoints, which load by name. Nothing is copied from EDM, whose licence forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_backbones.ddpmpp_blocks import (
    ALMOST_ZERO,
    EPS,
    Block,
    conv,
    decoder_shapes,
    encoder_shapes,
    named,
    wave,
    xavier,
)
from advdiff_backbones.layers import (
    DiffusionSettings,
    Trail,
    divides,
    drop_labels,
    group_norm,
    noise_levels,
    run_block,
)
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32, image_shape, num_labels
from advdiff_core.settings import setting, settings
from advdiff_core.types import TapInfo

__all__ = ["DDPMppUNet"]


class DDPMppUNet(Backbone):
    """DDPM++ U-Net of EDM: 55.7 M parameters for CIFAR-10 with the default settings.

    Song et al. (2021), appendix H, and Karras et al. (2022), table 7. Taps: every block by its name
    in EDM, `enc.32x32_conv`, `enc.16x16_down`, `enc.8x8_block3`, `dec.8x8_in1`, `dec.16x16_up`,
    `dec.32x32_block4`. The noise level is read as it is given (EDM: `log(sigma) / 4`).
    Augmentation labels (EDM's non-leaky augmentation) go into `c_augment`; without
    them they are zero.

    Attributes:
        supports_double_backward: True with the attention kernel "math".
    """

    @settings
    class Settings(DiffusionSettings):
        """Keys of `use = "ddpmpp-unet"`."""

        channels: int = setting(128, help="channels of the first convolution", ge=4, le=4096)
        channel_mult: tuple[int, ...] = setting(
            (2, 2, 2), help="times `channels`, level by level", ge=1
        )
        blocks: int = setting(4, help="residual blocks per level of the encoder", ge=1, le=64)
        attention: tuple[int, ...] = setting(
            (16,), help="sizes (the longer side) with self-attention", ge=1, unit="pixels"
        )
        augment_dim: int = setting(0, help="augmentation labels; 9 for EDM's pipeline", ge=0)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        colours, height, width = image_shape(build, "ddpmpp-unet")
        halvings = len(settings.channel_mult) - 1
        divides(build, (height, width), 2**halvings, "channel_mult", "ddpmpp-unet")
        self.classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        self.augment_dim = settings.augment_dim
        self._add_embedding(settings.channels, settings.augment_dim)
        self._add_blocks(colours, (height, width), settings)
        self.supports_double_backward = settings.attention_kernel == "math"

    def _add_embedding(self, features: int, augment: int) -> None:
        width = 4 * features
        self.map_label = xavier(nn.Linear(self.classes, features)) if self.classes else None
        self.map_augment = xavier(nn.Linear(augment, features, bias=False)) if augment else None
        self.map_layer0 = xavier(nn.Linear(features, width))
        self.map_layer1 = xavier(nn.Linear(width, width))

    def _add_blocks(self, colours: int, size: tuple[int, int], config: Any) -> None:
        label, width = named(size), 4 * config.channels
        encoder = list(encoder_shapes(size, config))
        decoder = list(decoder_shapes(encoder, config))
        last = decoder[-1].outer
        self.enc = nn.ModuleDict({f"{label}_conv": conv(colours, config.channels, 3)})
        self.enc.update({shape.name: Block(shape, width, config) for shape in encoder})
        self.dec = nn.ModuleDict({shape.name: Block(shape, width, config) for shape in decoder})
        self.dec[f"{label}_aux_norm"] = group_norm(last, eps=EPS, least=4)
        self.dec[f"{label}_aux_conv"] = conv(last, colours, 3, ALMOST_ZERO)
        self._encoder, self._decoder = tuple(encoder), tuple(decoder)
        taps = {f"enc.{label}_conv": TapInfo(width=config.channels, size=size)}
        for part, shapes in (("enc", encoder), ("dec", decoder)):
            taps |= {f"{part}.{s.name}": TapInfo(width=s.outer, size=s.size) for s in shapes}
        self._taps, self._ends = taps, (f"{label}_conv", f"{label}_aux_norm", f"{label}_aux_conv")

    @property
    def draws_random(self) -> bool:
        """True with dropout of features or labels."""
        return self.settings.dropout > 0 or (self.classes > 0 and self.settings.label_dropout > 0)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Output of every block, in forward order."""
        return dict(self._taps)

    def forward(  # noqa: PLR0913 - one forward of a network.
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        c_augment: Tensor | None = None,
    ) -> BackboneOutput:
        """Run the network on images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32.

        Args:
            x: Noised images [B, C, H, W].
            c_noise: Noise level [B].
            labels: Class labels [B]; the number of classes means "no label".
            taps: Features to return.
            stop_at: Stop after this tap.
            c_augment: Augmentation labels [B, augment_dim]; None is zero: not augmented.
        """
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self._taps), self.build.path)
        embedding = self._embedding(x, c_noise, labels, c_augment)
        trail = Trail(taps, stop_at)
        first, norm, last = self._ends
        h = self.enc[first](x)
        if trail.ends(f"enc.{first}", h):
            return BackboneOutput(None, trail.features)
        skips = [h]
        for shape in self._encoder:
            h = self._run(self.enc[shape.name], h, embedding)
            skips.append(h)
            if trail.ends(f"enc.{shape.name}", h):
                return BackboneOutput(None, trail.features)
        for shape in self._decoder:
            h = torch.cat([h, skips.pop()], dim=1) if shape.skip else h
            h = self._run(self.dec[shape.name], h, embedding)
            if trail.ends(f"dec.{shape.name}", h):
                return BackboneOutput(None, trail.features)
        out = self.dec[last](F.silu(self.dec[norm](h)))
        return BackboneOutput(at_least_fp32(out), trail.features)

    def _run(self, block: nn.Module, h: Tensor, embedding: Tensor) -> Any:
        return run_block(block, h, embedding, recompute=self.settings.checkpoint_blocks)

    def _embedding(
        self, x: Tensor, c_noise: Tensor | None, labels: Tensor | None, c_augment: Tensor | None
    ) -> Tensor:
        level = noise_levels(self.settings, self.build, c_noise, x)
        h = wave(level, self.settings.channels).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            share = self.settings.label_dropout if self.training else 0.0
            found = drop_labels(labels, x, classes=self.classes, share=share)
            one_hot = F.one_hot(found, self.classes + 1)[:, : self.classes].to(h.dtype)
            h = h + self.map_label(one_hot * math.sqrt(self.classes))
        if self.map_augment is not None and c_augment is not None:
            h = h + self.map_augment(c_augment.to(h.dtype))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(h))))
