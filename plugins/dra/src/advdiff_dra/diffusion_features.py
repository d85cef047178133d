"""Features of a frozen denoiser as alignment targets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.errors import ContractError
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.frozen_network import FrozenNetwork
from advdiff_core.settings import setting, settings
from advdiff_dra.classifiers import refuse
from advdiff_dra.features import channel_scale, check_tap, massive_channels, pooled, tokens
from advdiff_dra.noise_levels import LevelSettings, NoiseLevels
from advdiff_dra.ranges import Mover

__all__ = ["DiffusionFeatures"]

#: Samples of pure noise on which massive channels are looked for.
PROBES = 4


class DiffusionFeatures(AlignmentTarget):
    """Features that a frozen denoiser has of a noised clean image, at one of its taps.

    The teacher of DRA (arXiv 2602.19931, section 4): `E(x_t, t, c)` with `x_t` the noised image.
    The teacher runs up to the tap and no further. For a U-Net the paper takes a block of the
    bottleneck, averaged over space; for LightningDiT the middle block with channels 1053 and 259
    set to zero, then modulated as the next block does it. Noise level, block and condition are
    not known from the paper's text; their defaults are ours.
    """

    @settings
    class Settings(LevelSettings):
        """Keys of `use = "diffusion-features"`."""

        teacher: str = setting("teacher", ref="role", help="frozen denoiser")
        tap: str = setting(help="place in the teacher, for example dec.8x8_in1 of ddpmpp-unet")
        condition: Literal["auto", "label", "none"] = setting(
            "auto", help="tell the teacher the labels; auto: if it was made for them"
        )
        pooling: Literal["mean", "none"] = setting(
            "mean", help="mean over positions or tokens, or one target for each of them"
        )
        zero_channels: tuple[int, ...] = setting(
            (), ge=0, help="channels set to zero; (1053, 259) for LightningDiT-XL/1"
        )
        massive: float = setting(
            0.0, ge=0.0,
            help="also set to zero the channels over this many times the median magnitude (20 to "
            "50), found once on pure noise; 0: none",
        )  # fmt: skip
        modulate: bool = setting(
            False, help="then normalise, scale and shift as the adaptive norm of the next block"
        )
        domain: tuple[float, float] | None = setting(
            None, help="range of the images that the teacher knows; the data's own if left out"
        )

    settings: Settings
    scale: Tensor

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.network = self._teacher()
        info = self.network.info
        self._width = check_tap(build, info.taps, settings.tap, settings.teacher).width
        self.told = self._told()
        self.levels = NoiseLevels(settings, build)
        self.mover = Mover(build, settings.domain, self.network.trained_on)
        scale = channel_scale(self._width, self._zeroed())
        self.register_buffer("scale", scale, persistent=False)

    @property
    def width(self) -> int:
        """Channels of the tap."""
        return self._width

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling; see `AlignmentTarget.forward`."""
        x_t, t = self.levels.noised(self.mover(x0), rng)
        found = self._features(x_t, t, self._labels(labels))
        return pooled(found) if self.settings.pooling == "mean" else found

    def _features(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Features [B, N, D] of a tap, without massive channels, modulated if asked for."""
        tap = self.settings.tap
        found = self.network.denoise(x_t, t, labels, taps=(tap,), stop_at=tap).features[tap]
        found = tokens(found) * self.scale.to(found)
        if self.settings.modulate:
            found = tokens(self.network.modulated(tap, found, t, labels))
        return found

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        if not self.told or labels is None:
            return None
        if labels.dim() == 2:
            raise ContractError(
                "the labels are mixtures, and the teacher takes one class", code="R10",
                where=f"{self.build.path}.condition",
                fix='write condition = "none", or take the mixing augmentation out',
            )  # fmt: skip
        return labels

    def _teacher(self) -> FrozenNetwork:
        """The denoiser.

        Raises:
            RecipeError: R10 if the role is none.
        """
        role = self.settings.teacher
        network = self.build.network(role, key="teacher")
        if network.info.parametrization == "none":
            message = f"model {role!r} is a classifier, not a denoiser"
            refuse(self.build, "teacher", message, "take noisy-classifier-features for it")
        return network

    def _told(self) -> bool:
        """Whether the teacher is given labels.

        Raises:
            RecipeError: R10 if it cannot be, or counts other classes than the data.
        """
        wanted, known = self.settings.condition, self.network.info.classes
        assert self.build.data is not None
        have = self.build.data.classes
        if wanted == "none" or (wanted == "auto" and not known):
            return False
        role = self.settings.teacher
        if not known:
            fix = 'write condition = "none", or give that model conditional = true'
            refuse(self.build, "condition", f"{wanted!r}, but model {role!r} ignores labels", fix)
        if known != have:
            message = f"model {role!r} knows {known} classes, the data have {have or 'no labels'}"
            fix = 'take a teacher trained on the same classes, or write condition = "none"'
            refuse(self.build, "condition", message, fix)
        return True

    def _zeroed(self) -> tuple[int, ...]:
        """Channels that are set to zero.

        Raises:
            RecipeError: R10 if there is no such channel.
        """
        chosen = self.settings.zero_channels
        far = [channel for channel in chosen if channel >= self._width]
        if far:
            message = f"{far[0]}, the tap {self.settings.tap!r} has {self._width} channels"
            fix = f"choose numbers from 0 to {self._width - 1}"
            refuse(self.build, "zero_channels", message, fix)
        found = self._massive() if self.settings.massive else ()
        return tuple(sorted({*chosen, *found}))

    def _massive(self) -> tuple[int, ...]:
        """Channels that are massive on pure noise, which is what the teacher sees at the last time.

        No image is needed for it: the channels are the same at all noise levels.
        """
        assert self.build.data is not None
        schedule, tap = self.levels.schedule, self.settings.tap
        t = torch.full((PROBES,), schedule.t_max)
        generator = self.build.generator("massive")
        noise = torch.randn(PROBES, *self.build.data.shape, generator=generator)
        labels = torch.arange(PROBES) % self.network.info.classes if self.told else None
        x_t = float(schedule.sigma(t)[0]) * noise
        found = self.network.denoise(x_t, t, labels, taps=(tap,), stop_at=tap)
        return massive_channels(found.features[tap], self.settings.massive)
