"""Latents of images: what latent diffusion models are trained on."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from advdiff_backbones.autoencoder import (
    PIXELS,
    Value,
    latent_scales,
    latent_shape,
    load_autoencoder,
)
from advdiff_backbones.diffusers_load import need_diffusers
from advdiff_core.draws import keyed_generator
from advdiff_core.errors import DataError
from advdiff_core.hooks.files import write_file
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import Batch, DataInfo

__all__ = ["Latent"]


class Latent(Dataset):
    """Images of another dataset, encoded by an autoencoder (AutoencoderKL of diffusers).

    Latents are `(z - shift) * scale`, with the autoencoder's own shift and scale, and have no range
    (Rombach et al. 2022). Each image is encoded alone, so that its latent is the same in any batch.
    Pictures of a run, and metrics of images, see latents decoded.
    """

    @settings
    class Settings:
        """Keys of `use = "latent"`."""

        images: Spec = setting(kind="dataset", help="the images")
        vae: str = setting("", help="folder or hub repository of the autoencoder")
        subfolder: str = setting("", help="folder inside of it, for example vae")
        config: dict[str, Value] = setting(
            factory=dict, help="arguments of an untrained autoencoder, for trials; in place of vae"
        )
        posterior: str = setting(
            "mean", help="mean: the code's mean; sample: one draw, the same in every epoch",
            choices=("mean", "sample"),
        )  # fmt: skip
        scale: float = setting(0.0, help="factor of the latents; 0: the autoencoder's own", ge=0)
        cache: Path | None = setting(
            None, help="folder to keep latents in, all encoded at first use; none: encode each time"
        )
        device: str = setting(
            "auto", help="where to encode and decode; auto: a GPU if there is one",
            choices=("auto", "cpu", "cuda"),
        )  # fmt: skip

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        need_diffusers(build)
        self.images = cast("Dataset", build.nested(settings.images))
        auto = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = auto if settings.device == "auto" else settings.device
        self._vae = load_autoencoder(settings, build).eval().requires_grad_(False).to(self._device)
        self._shape = latent_shape(
            self._vae.config, self.images.info, self.images.info.shape[1:], build, key="images"
        )  # fmt: skip

    @property
    def info(self) -> DataInfo:
        """Latents: no range."""
        of = self.images.info
        return DataInfo(shape=self._shape, count=of.count, classes=of.classes)

    @property
    def pictures(self) -> DataInfo:
        """The images, in the autoencoder's range."""
        of = self.images.info
        return DataInfo(shape=of.shape, count=of.count, domain=PIXELS, classes=of.classes)

    def batch(self, indices: Tensor) -> Batch:
        """Latents [B, C, h, w] and labels [B] at `indices` [B]; see `Dataset.batch`."""
        if self.settings.cache is None:
            x, y = self.images.batch(indices)
            moments = torch.stack([self._moments(image) for image in self._pixels(x)])
        else:
            # Labels are read with the images, whose cost is small beside the encoder's.
            y = self.images.batch(indices).y
            moments = self._kept(indices)
        return Batch(self._latents(moments, indices), y)

    def fingerprint(self) -> str:
        """Digest of the images, the autoencoder and the rule."""
        rule = f"{self.settings.posterior} {self.settings.scale!r}"
        words = f"{self._source} {rule}"
        return hashlib.sha256(words.encode()).hexdigest()

    def decode(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] of latents `x` [B, C, h, w]; see `Dataset.decode`."""
        with torch.no_grad():
            made = [
                self._vae.decode(self._unscaled(one[None]), return_dict=False)[0]
                for one in x.float().to(self._device)
            ]
        return torch.cat(made).clamp(PIXELS.low, PIXELS.high).float().cpu()

    def originals(self, indices: Tensor) -> Tensor:
        """The images [B, C, H, W] themselves, in [-1, 1]."""
        return self._pixels(self.images.batch(indices).x)

    def _pixels(self, x: Tensor) -> Tensor:
        domain = self.images.info.domain
        assert domain is not None, "images without a range are refused"
        return PIXELS.low + (x - domain.low) / domain.span * PIXELS.span

    @torch.no_grad()
    def _moments(self, image: Tensor) -> Tensor:
        """Mean and standard deviation [2, C, h, w] of the code of one image [C, H, W]."""
        code = self._vae.encode(image[None].to(self._device), return_dict=False)[0]
        return torch.cat([code.mean, code.std]).float().cpu()

    def _latents(self, moments: Tensor, indices: Tensor) -> Tensor:
        """Latents [B, C, h, w] of moments [B, 2, C, h, w]."""
        code = moments[:, 0]
        if self.settings.posterior == "sample":
            noise = [
                torch.randn(self._shape, generator=self._generator(index))
                for index in indices.tolist()
            ]
            code = code + moments[:, 1] * torch.stack(noise)
        shift, scale = self._scales(code)
        return (code - shift) * scale

    def _generator(self, index: int) -> torch.Generator:
        return keyed_generator(self.build.seed, "latent", index)

    def _unscaled(self, x: Tensor) -> Tensor:
        shift, scale = self._scales(x)
        return x / scale + shift

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale [C, 1, 1] or scalar, for latents [B, C, h, w]."""
        return latent_scales(self._vae.config, like, self.settings.scale)

    @cached_property
    def _source(self) -> str:
        """Digest of the images and the autoencoder's weights."""
        digest = hashlib.sha256(self.images.fingerprint().encode())
        for name, tensor in sorted(self._vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _kept(self, indices: Tensor) -> Tensor:
        """Moments [B, 2, C, h, w] out of the cache.

        Raises:
            DataError: D02 if the file is damaged.
        """
        path = self._filled
        try:
            with safe_open(path, "pt") as file:
                held = file.get_slice("moments")
                return torch.cat([held[index : index + 1] for index in indices.tolist()])
        except (OSError, SafetensorError) as error:
            text = " ".join(str(error).split())
            fix = "delete it: the latents are then encoded anew"
            raise DataError(text, code="D02", where=str(path), fix=fix) from error

    @cached_property
    def _filled(self) -> Path:
        """The file of the cache, written whole if it is not there."""
        path: Path = self.settings.cache / f"latents-{self._source[:32]}.safetensors"
        if not path.exists():
            every = torch.arange(self.info.count)
            moments = torch.stack([
                self._moments(self._pixels(self.images.batch(index[None]).x)[0]) for index in every
            ])  # fmt: skip
            write_file(path, save({"moments": moments}))
        return path
