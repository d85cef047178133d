"""Networks of a few hundred weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core import (
    AlignmentTarget,
    Backbone,
    BackboneOutput,
    Build,
    Discriminator,
    Draws,
    TapInfo,
)
from advdiff_core.settings import setting, settings

__all__ = ["ToyCritic", "ToyNet", "ToyTarget"]


def dims(build: Build) -> int:
    """Numbers in one sample."""
    assert build.data is not None
    return math.prod(build.data.shape)


class ToyNet(Backbone):
    """Three smooth layers on flattened input, with a tap after each of the first two."""

    @settings
    class Settings:
        """Keys of `use = "toy-net"`."""

        width: int = setting(16, ge=1, help="features of a layer")
        outputs: int = setting(0, ge=0, help="logits of a classifier; 0: a denoiser")
        dropout: float = setting(0.0, ge=0.0, lt=1.0, help="share of features dropped in training")
        batch_norm: bool = setting(False, help="normalise over the batch")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        size, width = dims(build), settings.width
        self.layers = nn.ModuleList([nn.Linear(size + 1, width), nn.Linear(width, width)])
        self.norm = nn.BatchNorm1d(width) if settings.batch_norm else nn.Identity()
        self.dropout = nn.Dropout(settings.dropout)
        self.last = nn.Linear(width, settings.outputs or size)
        #: Layers that ran, over the life of the network; tests read it.
        self.layers_run = 0

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """`layer.0` and `layer.1`."""
        return {f"layer.{n}": TapInfo(width=self.settings.width) for n in range(len(self.layers))}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Run the network; see `Backbone.forward`."""
        del labels
        level = x.new_zeros(x.shape[0]) if c_noise is None else c_noise / 1000
        h = torch.cat([x.flatten(1), level[:, None].to(x.dtype)], dim=1)
        features: dict[str, Tensor] = {}
        for n, layer in enumerate(self.layers):
            self.layers_run += 1
            h = self.dropout(self.norm(torch.tanh(layer(h))))
            if f"layer.{n}" in taps:
                features[f"layer.{n}"] = h
            if f"layer.{n}" == stop_at:
                return BackboneOutput(None, features)
        out = self.last(h)
        return BackboneOutput(out if self.settings.outputs else out.reshape(x.shape), features)


class ToyCritic(Discriminator):
    """One hidden layer and one logit; sees the difference from a reference if given one."""

    @settings
    class Settings:
        """Keys of `use = "toy-critic"`."""

        width: int = setting(8, ge=1, help="hidden features")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.net = nn.Sequential(
            nn.Linear(dims(build), settings.width), nn.Tanh(), nn.Linear(settings.width, 1)
        )

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B]; see `Discriminator.forward`."""
        del labels
        seen = x if reference is None else x - reference
        out: Tensor = self.net(seen.flatten(1)).squeeze(1)
        return out


class ToyTarget(AlignmentTarget):
    """A fixed random projection of slightly noised images."""

    @settings
    class Settings:
        """Keys of `use = "toy-target"`."""

        width: int = setting(4, ge=1, help="features")
        noise: float = setting(0.1, ge=0.0, help="standard deviation of the noise added before")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.projection = nn.Linear(dims(build), settings.width)

    @property
    def width(self) -> int:
        """Feature width."""
        return int(self.settings.width)

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D]; see `AlignmentTarget.forward`."""
        del labels
        noise = rng.normal(x0.shape).to(x0.dtype)
        out: Tensor = self.projection((x0 + self.settings.noise * noise).flatten(1))
        return out
