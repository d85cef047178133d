"""The encoder of a diffusion model as a classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from attrs import evolve
from torch import Tensor, nn

from advdiff_core.interfaces.backbone import Backbone, BackboneOutput, check_taps
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import at_least_fp32
from advdiff_core.math.parametrization import edm_coefficients
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.types import TapInfo
from advdiff_dra.classifiers import refuse
from advdiff_dra.features import check_tap, pooled
from advdiff_dra.noise_levels import GUESSED_SIGMA

__all__ = ["DiffusionClassifier"]

#: Largest magnitude of the noise-level input, as of the core's denoisers.
MAX_LEVEL = 4.0


class DiffusionClassifier(Backbone):
    """The encoder of an EDM denoiser, averaged over space, and a linear layer on top.

    For the ablations of DRA (arXiv 2602.19931, sections 4.1 and 5.6): the encoder fine-tuned by
    adversarial training, or trained to tell classes on noised images. Inputs are scaled, and the
    noise level is told, as for the denoiser (Karras et al., 2022); labels are not told. Nothing
    after the tap runs. Taps: those of the denoiser up to its own, and `pooled`.

    Attributes:
        supports_double_backward: That of the denoiser.
    """

    @settings
    class Settings:
        """Keys of `use = "diffusion-classifier"`."""

        denoiser: Spec = setting(kind="backbone", help="network of the denoiser")
        weights: Path | None = setting(
            None, help="its run, checkpoint, imported model or safetensors file; random if left out"
        )
        role: str = setting("student", help="role whose weights are taken, where weights is a run")
        tap: str = setting(help="place in it where it is cut, for example dec.8x8_in1")
        sigma: float = setting(
            GUESSED_SIGMA, gt=0.0, help="noise level it is told; our guess, see diffusion-features"
        )
        noise: Literal["fixed", "none"] = setting(
            "fixed",
            help="add the same noise of this level to all images, or none: the view is noised",
        )
        data_std: float = setting(0.5, gt=0.0, help="sigma_data of the denoiser, as in EDM")
        outputs: int = setting(0, ge=0, help="logits; 0: as many as the data have classes")

    settings: Settings
    eps: Tensor

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        assert build.data is not None
        self.denoiser = self._denoiser()
        info = check_tap(build, self.denoiser.taps, settings.tap, "denoiser")
        outputs = settings.outputs or build.data.classes
        if not outputs:
            refuse(build, "outputs", "0, and the data have no labels", "write how many logits")
        names = tuple(self.denoiser.taps)
        kept = names[: names.index(settings.tap) + 1]
        self._taps = {name: self.denoiser.taps[name] for name in kept}
        self._taps["pooled"] = TapInfo(width=info.width)
        self.head = nn.Linear(info.width, outputs)
        drawn = torch.randn(1, *build.data.shape, generator=build.generator("noise"))
        self.register_buffer("eps", drawn * settings.sigma)
        self.supports_double_backward = self.denoiser.supports_double_backward

    def _denoiser(self) -> Backbone:
        """The network, told of the noise levels that the denoiser was told of."""
        spec = self.settings.denoiser
        build = evolve(self.build, path=spec.path, c_noise=_levels(self.build))
        network: Backbone = spec.component(spec.settings, build)
        if self.settings.weights is not None:
            role = self.settings.role
            self.build.weights(network, self.settings.weights, key="weights", role=role)
        return network

    @property
    def draws_random(self) -> bool:
        """True if the denoiser draws."""
        return self.denoiser.draws_random

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """Those of the denoiser up to its own, and what the linear layer reads."""
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
        """Logits [B, K] of images `x` [B, C, H, W]; see `Backbone.forward`. Output in fp32."""
        del c_noise, labels
        wanted = taps if stop_at is None else (*taps, stop_at)
        check_taps(wanted, tuple(self._taps), self.build.path)
        last = self.settings.tap if stop_at in (None, "pooled") else stop_at
        inner = tuple(name for name in (*taps, last) if name in self.denoiser.taps)
        out = self.denoiser(*self._entering(x), taps=tuple(dict.fromkeys(inner)), stop_at=last)
        found = {name: out.features[name] for name in taps if name in out.features}
        if stop_at is not None and stop_at != "pooled":
            return BackboneOutput(None, found)
        features = pooled(out.features[self.settings.tap])
        if "pooled" in taps:
            found["pooled"] = features
        if stop_at == "pooled":
            return BackboneOutput(None, found)
        return BackboneOutput(at_least_fp32(self.head(features)), found)

    def _entering(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given: scaled images [B, ...] and noise levels [B]."""
        sigma = x.new_full((x.shape[0],), self.settings.sigma)
        c = edm_coefficients(sigma, self.settings.data_std)
        noised = x + self.eps.to(x) if self.settings.noise == "fixed" else x
        return c.c_in.reshape(-1, *[1] * (x.dim() - 1)).to(x) * noised, c.c_noise.to(x)


def _levels(build: Build) -> tuple[float, float]:
    """Range of `log(sigma) / 4` on the recipe's schedule."""
    if build.schedule is None:
        return -MAX_LEVEL, MAX_LEVEL
    ends = torch.tensor([build.schedule.t_min, build.schedule.t_max], dtype=torch.float64)
    found = (-build.schedule.log_snr(ends) / 8).clamp(-MAX_LEVEL, MAX_LEVEL)
    low, high = found.tolist()
    assert math.isfinite(low + high)
    return low, high
