"""Autoencoders of diffusers: how they are read, and their encoder as a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_backbones.classifier import refusal
from advdiff_backbones.diffusers_load import need_diffusers, pretrained
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32
from advdiff_core.settings import setting, settings
from advdiff_core.types import DataInfo, Domain, TapInfo

__all__ = [
    "PIXELS",
    "VAEEncoder",
    "AutoencoderSettings",
    "latent_scales",
    "latent_shape",
    "load_autoencoder",
]

#: A value in `config`, the table of constructor arguments.
Value = bool | int | float | str | tuple[bool | int | float | str, ...]

#: Range of the images that autoencoders of diffusers read and make.
PIXELS = Domain(-1.0, 1.0)


@settings
class AutoencoderSettings:
    """Keys that name an autoencoder."""

    vae: str = setting("", help="folder or hub repository of the autoencoder")
    subfolder: str = setting("", help="folder inside of it, for example vae")
    config: dict[str, Value] = setting(
        factory=dict, help="arguments of an untrained autoencoder, for trials; in place of vae"
    )
    scale: float = setting(0.0, help="factor of the latents; 0: the autoencoder's own", ge=0)

    @property
    def brings_weights(self) -> bool:
        """Whether it is trained already: a recipe is then not warned of it."""
        return bool(self.vae)


class VAEEncoder(Backbone):
    """The encoder of an autoencoder of diffusers (AutoencoderKL): images to latents.

    Latents are `(mean - shift) * scale` of the code, with the autoencoder's own shift and scale
    (Rombach et al. 2022), which are numbers per channel where it has `latents_mean` and
    `latents_std`. Images of any range are moved to [-1, 1] and, with `image_size`, resized. Tap:
    `latent` [B, C, h, w]. The decoder is not kept.
    """

    supports_double_backward = False  # Its attention is fused.

    @settings
    class Settings(AutoencoderSettings):
        """Keys of `use = "vae-encoder"`."""

        image_size: int = setting(
            0, help="size that is encoded; images are resized to it; 0: that of the data", ge=0,
            unit="pixels",
        )  # fmt: skip

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        need_diffusers(build)
        assert build.data is not None, "a backbone is built after the data"
        vae = load_autoencoder(settings, build)
        wanted = settings.image_size
        self._size = (wanted, wanted) if wanted else build.data.shape[1:]
        self._latent = latent_shape(vae.config, build.data, self._size, build, key="use")
        shift, scale = latent_scales(vae.config, torch.zeros(()), settings.scale)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    shift: Tensor
    scale: Tensor

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """The latents."""
        channels, height, width = self._latent
        return {"latent": TapInfo(width=channels, size=(height, width))}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Latents [B, C, h, w] of images `x` [B, C, H, W], which are its output, in fp32."""
        del c_noise, labels
        check_taps(taps if stop_at is None else (*taps, stop_at), ("latent",), self.build.path)
        code = self.encoder(self._entering(x))
        if self.quant_conv is not None:
            code = self.quant_conv(code)
        mean = at_least_fp32(code).chunk(2, dim=1)[0]
        latents = (mean - self.shift) * self.scale
        found = {"latent": latents} if "latent" in taps else {}
        return BackboneOutput(latents if stop_at is None else None, found)

    def translate(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a whole autoencoder, any shape, without those of its decoder."""
        return {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith(("decoder.", "post_quant_conv."))
        }

    def _entering(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1], of the size that is encoded."""
        if tuple(x.shape[2:]) != tuple(self._size):
            x = F.interpolate(
                x, self._size, mode="bilinear", align_corners=False, antialias=True
            )  # fmt: skip
        domain = self.build.data.domain if self.build.data is not None else None
        assert domain is not None, "images without a range are refused"
        if domain == PIXELS:
            return x
        return PIXELS.low + (x - domain.low) / domain.span * PIXELS.span


def load_autoencoder(settings: Any, build: Build) -> Any:
    """The autoencoder, trained or new; the weights of a new one depend on the run's seed alone.

    Args:
        settings: Settings with the keys of `AutoencoderSettings`.
        build: What the component is told.

    Raises:
        RecipeError: R10 if it is not said which, or if diffusers refuses the arguments.
        DataError: D01 if nothing can be read there.
    """
    from diffusers import AutoencoderKL

    if bool(settings.vae) == bool(settings.config):
        found = "both" if settings.vae else "neither"
        fix = 'write vae = "FOLDER" for a trained autoencoder, config = { ... } for a new one'
        raise refusal(build, "vae", f"wanted either vae or config, found {found}", fix=fix)
    if settings.vae:
        return pretrained(AutoencoderKL, settings.vae, settings.subfolder, build, key="vae")
    made: Any = AutoencoderKL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(build.generator().initial_seed())
        try:
            return made(**settings.config)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            text = " ".join(str(error).split())
            raise refusal(
                build, "config", f"AutoencoderKL refuses these arguments: {text}",
                fix="see the arguments of diffusers.AutoencoderKL",
            ) from error  # fmt: skip


def latent_shape(
    config: Any, images: DataInfo, size: tuple[int, ...], build: Build, *, key: str
) -> tuple[int, int, int]:
    """Shape of a latent.

    Args:
        config: The autoencoder's configuration.
        images: The images.
        size: Height and width that are encoded.
        build: What the component is told.
        key: Key of its table that the images come from, for messages.

    Raises:
        RecipeError: R10 if the autoencoder cannot take the images.
    """
    factor = 2 ** (len(config.block_out_channels) - 1)
    if not images.is_image or images.domain is None or images.shape[0] != config.in_channels:
        raise refusal(
            build, key, f"the autoencoder encodes images of {config.in_channels} channels "
            f"with a range, the data have shape {list(images.shape)}", fix="take other images",
        )  # fmt: skip
    if size[0] % factor or size[1] % factor:
        found = f"the data have shape {[images.shape[0], *size]}"
        raise refusal(
            build, key, f"the autoencoder divides sizes by {factor}, {found}",
            fix=f"take images whose sides are multiples of {factor}",
        )  # fmt: skip
    return config.latent_channels, size[0] // factor, size[1] // factor


def latent_scales(config: Any, like: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Shift and scale, [C, 1, 1] or scalar: a latent is `(code - shift) * scale`.

    Args:
        config: The autoencoder's configuration.
        like: A tensor of the type and device that are wanted.
        scale: A factor in place of the autoencoder's own; 0 for that.
    """
    factor = scale or config.scaling_factor
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (like.new_tensor(v) for v in (config.latents_mean, config.latents_std))
        return mean.view(-1, 1, 1), factor / std.view(-1, 1, 1)
    return like.new_tensor(config.shift_factor or 0.0), like.new_tensor(factor)
