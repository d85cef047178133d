"""Features of frozen classifiers and encoders as alignment targets."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.frozen_network import FrozenNetwork
from advdiff_core.settings import setting, settings
from advdiff_dra.classifiers import refuse
from advdiff_dra.features import check_tap, pooled, tokens
from advdiff_dra.noise_levels import LevelSettings, NoiseLevels

__all__ = ["EncoderFeatures", "NoisyClassifierFeatures"]


class EncoderFeatures(AlignmentTarget):
    """Features that a frozen classifier or encoder has of the clean image, at one of its taps.

    The target of REPA (Yu et al., 2024) with `timm:vit_base_patch14_dinov2` as the role. Size
    and normalisation of the images are the role's own keys (`image_size`, `mean` and `std`).
    """

    @settings
    class Settings:
        """Keys of `use = "encoder-features"`."""

        encoder: str = setting("encoder", ref="role", help="frozen classifier or encoder")
        tap: str = setting(help="place in it, for example pooled")
        pooling: Literal["mean", "none"] = setting(
            "mean", help="mean over positions or tokens, or one target for each of them"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.network = _classifier(build, settings.encoder, "encoder")
        self._width = check_tap(
            build, self.network.info.taps, settings.tap, settings.encoder
        ).width  # fmt: skip

    @property
    def width(self) -> int:
        """Channels of the tap."""
        return self._width

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling; see `AlignmentTarget.forward`."""
        del labels, rng
        return _read(self.network, x0, self.settings.tap, self.settings.pooling)


class NoisyClassifierFeatures(AlignmentTarget):
    """Features that a frozen classifier has of the noised clean image, at one of its taps.

    The ablation that fails in the paper of DRA (arXiv 2602.19931, section 5.6): the encoder of the
    diffusion model, trained to tell classes on the same noised images, is as good in a linear probe
    and worse than no target. The law of noise of its training is not known; ours is the target's.
    """

    @settings
    class Settings(LevelSettings):
        """Keys of `use = "noisy-classifier-features"`."""

        teacher: str = setting("teacher", ref="role", help="frozen classifier of noised images")
        tap: str = setting(help="place in it, for example pooled")
        pooling: Literal["mean", "none"] = setting(
            "mean", help="mean over positions or tokens, or one target for each of them"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.network = _classifier(build, settings.teacher, "teacher")
        self._width = check_tap(
            build, self.network.info.taps, settings.tap, settings.teacher
        ).width  # fmt: skip
        self.levels = NoiseLevels(settings, build)

    @property
    def width(self) -> int:
        """Channels of the tap."""
        return self._width

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling; see `AlignmentTarget.forward`."""
        del labels
        x_t, _ = self.levels.noised(x0, rng)
        return _read(self.network, x_t, self.settings.tap, self.settings.pooling)


def _classifier(build: Build, role: str, key: str) -> FrozenNetwork:
    """The network of a role without parametrization.

    Raises:
        RecipeError: R10 if it is a denoiser.
    """
    network = build.network(role, key=key)
    if network.info.parametrization != "none":
        message = f"model {role!r} is a denoiser"
        refuse(build, key, message, "take diffusion-features for it")
    return network


def _read(network: FrozenNetwork, x: Tensor, tap: str, pooling: str) -> Tensor:
    """Features at a tap of `x` [B, ...]: [B, D] pooled, else [B, N, D]."""
    found = network.classify(x, taps=(tap,), stop_at=tap).features[tap]
    return pooled(found) if pooling == "mean" else tokens(found)
