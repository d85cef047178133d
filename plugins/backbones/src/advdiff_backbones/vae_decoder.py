"""The decoder of an autoencoder as a network of a recipe, which gradients can pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve
from torch import Tensor

from advdiff_backbones.autoencoder import AutoencoderSettings, latent_scales, load_autoencoder
from advdiff_backbones.classifier import refusal
from advdiff_backbones.diffusers_load import need_diffusers
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32
from advdiff_core.settings import settings
from advdiff_core.types import TapInfo

__all__ = ["VAEDecoder"]


class VAEDecoder(Backbone):
    """Images of latents, by the decoder of an autoencoder of diffusers (AutoencoderKL).

    The way back of the dataset `latent`, for losses on images whose gradient reaches a generator of
    latents (Rombach et al. 2022). Images [B, C, H, W] are in [-1, 1], not clipped. Write the same
    keys as in `data`; arguments of an untrained autoencoder then give that of the data.
    """

    supports_double_backward = False  # Its attention is fused.

    @settings
    class Settings(AutoencoderSettings):
        """Keys of `use = "vae-decoder"`."""

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        need_diffusers(build)
        # The key of random weights: that of the dataset, whose latents these are to decode.
        vae = load_autoencoder(settings, evolve(build, path="data") if settings.config else build)
        _check_latents(vae.config.latent_channels, build)
        self.config = vae.config
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """None."""
        return {}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Images [B, C, H, W] of latents `x` [B, C, h, w], in fp32; see `Backbone.forward`."""
        del c_noise, labels
        check_taps(taps if stop_at is None else (*taps, stop_at), (), self.build.path)
        shift, scale = latent_scales(self.config, x, self.settings.scale)
        code = x / scale + shift
        if self.post_quant_conv is not None:
            code = self.post_quant_conv(code)
        out: Any = self.decoder(code)
        return BackboneOutput(at_least_fp32(out), {})


def _check_latents(channels: int, build: Build) -> None:
    """Refuse data that are no latents of the autoencoder.

    Raises:
        RecipeError: R10.
    """
    shape = build.data.shape if build.data is not None else ()
    if len(shape) != 3 or shape[0] != channels:
        message = f"the decoder reads latents of {channels} channels, the data have {list(shape)}"
        fix = 'use = "latent" in data, with the same autoencoder'
        raise refusal(build, "use", message, fix=fix)
