"""Features of a denoiser of latents as alignment targets of a classifier of images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from attrs import evolve
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import DataInfo, Prediction, TapInfo, expand
from advdiff_dra.classifiers import refuse
from advdiff_dra.tap_reader import TapReader, TapSettings

__all__ = ["LatentDiffusionFeatures"]


class LatentDiffusionFeatures(AlignmentTarget):
    """Features that a frozen denoiser of latents has of the noised latent of a clean image.

    The teacher of DRA on ImageNet (arXiv 2602.19931, appendix D): LightningDiT at its middle block,
    with channels 1053 and 259 set to zero, then modulated as the next block does it. The image is
    encoded by the autoencoder whose latents the denoiser knows; neither runs further than needed.
    Noise level, and whether labels are told, are not known from the paper's text; defaults are
    ours.
    """

    @settings
    class Settings(TapSettings):
        """Keys of `use = "latent-diffusion-features"`."""

        encoder: Spec = setting(
            kind="backbone", help="what makes latents of images, for example vae-encoder"
        )
        latent: str = setting(
            "", help="tap of the encoder that is the latent; its last one if left out"
        )
        denoiser: Spec = setting(kind="backbone", help="denoiser of latents, for example dit")
        weights: Path | None = setting(
            None,
            help="weights of the denoiser: a run, checkpoint, imported model or safetensors file; "
            "random if left out",
        )
        role: str = setting("student", help="role whose weights are taken, where weights is a run")
        inputs: Literal["plain", "unit"] = setting(
            "plain",
            help="noised latents as they are, as LightningDiT reads them, or scaled to unit "
            "variance, as denoisers are trained here",
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.encoder = _nested(settings.encoder, build)
        self.tap, latent = self._latent()
        assert build.data is not None
        data = DataInfo(
            shape=(latent.width, *latent.size), count=build.data.count, classes=build.data.classes
        )
        self.denoiser = self._denoiser(data)
        assert build.schedule is not None, "every recipe has a schedule"
        network = _Bare(self.denoiser, build.schedule, plain=settings.inputs == "plain")
        self.reader = TapReader(settings, build, network, name="denoiser", shape=data.shape)

    @property
    def width(self) -> int:
        """Channels of the tap."""
        return self.reader.width

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling; see `AlignmentTarget.forward`."""
        found: Tensor = self.reader(self.encoded(x0), labels, rng)
        return found

    def encoded(self, x0: Tensor) -> Tensor:
        """Latents [B, c, h, w] of images `x0` [B, C, H, W]."""
        with torch.no_grad():
            found = self.encoder(x0, taps=(self.tap,), stop_at=self.tap).features[self.tap]
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def _latent(self) -> tuple[str, TapInfo]:
        """Tap of the encoder and what it holds.

        Raises:
            RecipeError: R10 or R11 if there is none, or it is no map of features.
        """
        taps = self.encoder.taps
        tap = self.settings.latent or (list(taps) or [""])[-1]
        known = ", ".join(taps) or "none"
        if tap not in taps:
            refuse(self.build, "latent", f"the encoder has no tap {tap!r}; there are {known}", "")
        if len(taps[tap].size) != 2:
            message = f"the tap {tap!r} of the encoder is no map [C, h, w]"
            refuse(self.build, "latent", message, f"choose another of {known}")
        return tap, taps[tap]

    def _denoiser(self, data: DataInfo) -> Backbone:
        schedule = self.build.schedule
        assert schedule is not None, "every recipe has a schedule"
        told = evolve(self.build, data=data, c_noise=schedule.c_noise_range())
        network = _nested(self.settings.denoiser, told)
        if self.settings.weights is not None:
            told.weights(
                network, self.settings.weights, key="weights", role=self.settings.role
            )  # fmt: skip
        return network


def _nested(spec: Spec, build: Build) -> Backbone:
    """A network inside the target, frozen."""
    made: Backbone = spec.component(spec.settings, evolve(build, path=spec.path))
    return made.requires_grad_(False).eval()


class _Bare:
    """A denoiser of the target itself, as `TapReader` runs one; see `Denoiser`.

    Args:
        network: The network.
        schedule: Noise levels.
        plain: Give it noised samples as they are, or scaled to unit variance.
    """

    def __init__(self, network: Backbone, schedule: NoiseSchedule, *, plain: bool) -> None:
        self.network, self.schedule, self.plain = network, schedule, plain

    @property
    def info(self) -> ModelInfo:
        """Taps and classes."""
        return ModelInfo(
            kind="backbone", frozen=True, taps=self.network.taps, classes=self.network.classes
        )

    @torch.no_grad()
    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> Prediction:
        """Features at noised samples `x_t` [B, ...] and times `t` [B]."""
        alpha, sigma = (expand(part(t), x_t) for part in (self.schedule.alpha, self.schedule.sigma))
        x_in = x_t if self.plain else ((alpha**2 + sigma**2).rsqrt() * x_t).to(x_t.dtype)
        level = self.schedule.c_noise(t).to(x_t.dtype)
        out = self.network(x_in, level, labels, taps=taps, stop_at=stop_at)
        wide = {
            n: f.to(torch.promote_types(f.dtype, torch.float32)) for n, f in out.features.items()
        }
        return Prediction("raw", x_t.new_empty(0), x_t, alpha, sigma, wide)

    @torch.no_grad()
    def modulated(
        self, tap: str, features: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, ...] at a tap as the next layer reads them."""
        level = self.schedule.c_noise(t).to(features.dtype)
        return self.network.modulated(tap, features, level, labels)
