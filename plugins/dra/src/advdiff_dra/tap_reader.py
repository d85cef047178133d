"""Features of a denoiser at a tap, of clean inputs that are noised first."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.settings import setting, settings
from advdiff_core.types import Prediction
from advdiff_dra.classifiers import refuse
from advdiff_dra.features import channel_scale, check_tap, massive_channels, pooled, tokens
from advdiff_dra.noise_levels import LevelSettings, NoiseLevels

__all__ = ["Denoiser", "TapReader", "TapSettings"]

#: Samples of pure noise on which massive channels are looked for.
PROBES = 4


@settings
class TapSettings(LevelSettings):
    """Keys of targets that read a denoiser."""

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


class Denoiser(Protocol):
    """What is asked of a denoiser; a `FrozenNetwork` is one."""

    @property
    def info(self) -> ModelInfo:
        """Its taps and classes."""

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> Prediction:
        """Features at `x_t` [B, ...] and times `t` [B]; see `FrozenNetwork.denoise`."""

    def modulated(
        self, tap: str, features: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, ...] at a tap as the next layer reads them; see `Backbone.modulated`."""


class TapReader(nn.Module):
    """`E(x_t, t, c)` of DRA (arXiv 2602.19931, section 4): noise, part of a denoiser, pooling.

    Args:
        keys: Settings with the keys of `TapSettings`.
        build: What the target is told.
        network: The denoiser.
        name: What messages call it.
        shape: Shape of what it reads; that of the data if left out.

    Raises:
        RecipeError: R10 or R11 if tap, level, labels or channels do not fit.
    """

    scale: Tensor

    def __init__(
        self,
        keys: Any,
        build: Build,
        network: Denoiser,
        *,
        name: str,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        assert build.data is not None
        self.keys, self.build, self.network, self.name = keys, build, network, name
        self.shape = build.data.shape if shape is None else shape
        self.width = check_tap(build, network.info.taps, keys.tap, name).width
        self.told = self._told()
        self.levels = NoiseLevels(keys, build, self.shape)
        scale = channel_scale(self.width, self._zeroed())
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling, of clean inputs `x0` [B, ...]."""
        x_t, t = self.levels.noised(x0, rng)
        found = self._features(x_t, t, self._labels(labels))
        return pooled(found) if self.keys.pooling == "mean" else found

    def _features(self, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Features [B, N, D] of a tap, without massive channels, modulated if asked for."""
        tap = self.keys.tap
        found = self.network.denoise(x_t, t, labels, taps=(tap,), stop_at=tap).features[tap]
        found = tokens(found) * self.scale.to(found)
        if self.keys.modulate:
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

    def _told(self) -> bool:
        """Whether the teacher is given labels.

        Raises:
            RecipeError: R10 if it cannot be, or counts other classes than the data.
        """
        wanted, known = self.keys.condition, self.network.info.classes
        assert self.build.data is not None
        have = self.build.data.classes
        if wanted == "none" or (wanted == "auto" and not known):
            return False
        if not known:
            fix = 'write condition = "none", or give that model conditional = true'
            refuse(
                self.build, "condition", f"{wanted!r}, but model {self.name!r} ignores labels", fix
            )  # fmt: skip
        if known != have:
            what = f"model {self.name!r} knows {known} classes"
            fix = 'take a teacher trained on the same classes, or write condition = "none"'
            refuse(self.build, "condition", f"{what}, the data have {have or 'no labels'}", fix)
        return True

    def _zeroed(self) -> tuple[int, ...]:
        """Channels that are set to zero.

        Raises:
            RecipeError: R10 if there is no such channel.
        """
        chosen = self.keys.zero_channels
        far = [channel for channel in chosen if channel >= self.width]
        if far:
            message = f"{far[0]}, the tap {self.keys.tap!r} has {self.width} channels"
            fix = f"choose numbers from 0 to {self.width - 1}"
            refuse(self.build, "zero_channels", message, fix)
        found = self._massive() if self.keys.massive else ()
        return tuple(sorted({*chosen, *found}))

    def _massive(self) -> tuple[int, ...]:
        """Channels that are massive on pure noise, which is what the teacher sees at the last time.

        No image is needed for it: the channels are the same at all noise levels.
        """
        schedule, tap = self.levels.schedule, self.keys.tap
        t = torch.full((PROBES,), schedule.t_max)
        generator = self.build.generator("massive")
        noise = torch.randn(PROBES, *self.shape, generator=generator)
        labels = torch.arange(PROBES) % self.network.info.classes if self.told else None
        x_t = float(schedule.sigma(t)[0]) * noise
        found = self.network.denoise(x_t, t, labels, taps=(tap,), stop_at=tap)
        return massive_channels(found.features[tap], self.keys.massive)
