"""The discriminator of ADT: cosine of an image's features with those of the image it stands for."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_adt.frozen_features import BackboneSettings, FrozenFeatures
from advdiff_adt.heads import Head, leaky
from advdiff_adt.spectral import advance, normed
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.discriminator import Discriminator
from advdiff_core.layers import at_least_fp32
from advdiff_core.settings import setting, settings

__all__ = ["Siamese"]


class Siamese(Discriminator):
    """Cosine similarity of an image with its reference, on frozen features (ADT).

    `D(I, R) = mean over taps and positions of cos(g(h_i(F_i(I))), sg(h'_i(F_i(R))))`: F a frozen
    network, h small heads, g a predictor, h' twins of the heads that average their weights,
    `phi' <- tau phi' + (1 - tau) phi` after each update (arXiv 2504.11423 by secondary sources:
    network, heads, predictor, twins, cosine and stop of the gradient FOUND; this formula DERIVED;
    taps, widths, tau and norms UNKNOWN there, ours are the defaults). It has no batch statistics.

    Scores are [B], from -1 to 1. Without a reference an image is compared with itself. In eval
    mode nothing is different.

    Attributes:
        supports_double_backward: That of the frozen network.
    """

    source = "ADT (arXiv 2504.11423, section 3.2, by secondary sources)"

    @settings
    class Settings(BackboneSettings):
        """Keys of `use = "siamese"`."""

        width: int = setting(64, ge=1, help="channels of the heads and their embeddings")
        hidden: int = setting(128, ge=1, help="channels inside the predictor")
        tau: float = setting(
            0.99, ge=0.0, lt=1.0, help="decay of the twins per update; the paper does not say"
        )
        spectral_norm: bool = setting(
            True, help="divide weights by their largest singular value, as StyleGAN-T does"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.features = FrozenFeatures(settings, build)
        self.supports_double_backward = self.features.supports_double_backward
        width, spectral = settings.width, settings.spectral_norm
        self.heads = nn.ModuleList(
            Head(channels, width, width, spectral=spectral) for channels in self.features.widths
        )
        self.predictor = _Predictor(width, settings.hidden, spectral=spectral)
        self.twins = copy.deepcopy(self.heads).requires_grad_(requires_grad=False)

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Scores [B]; see `Discriminator.forward`."""
        del labels
        online = [
            self.predictor(head(maps))
            for head, maps in zip(self.heads, self.features(x), strict=True)
        ]
        with torch.no_grad():
            seen = self.features(x if reference is None else reference)
            wanted = [twin(maps) for twin, maps in zip(self.twins, seen, strict=True)]
        each = [_cosine(*pair) for pair in zip(online, wanted, strict=True)]
        return torch.stack(each).mean(0)

    def updated(self) -> None:
        """Let the twins follow; see `ModuleComponent.updated`."""
        ours, theirs = list(self.twins.parameters()), list(self.heads.parameters())
        held: list[Any] = [parameter.data for parameter in ours]
        torch._foreach_lerp_(held, [p.data for p in theirs], 1 - self.settings.tau)
        advance(self)


def _cosine(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over positions [B] of the cosines of maps [B, C, H, W]."""
    cosines = F.cosine_similarity(at_least_fp32(ours), at_least_fp32(theirs), dim=1)
    return cosines.flatten(1).mean(1)


class _Predictor(nn.Module):
    """A perceptron at each position, shared by all taps.

    Args:
        width: Channels that go in and come out.
        hidden: Channels inside.
        spectral: Normalise weights by their largest singular value.
    """

    def __init__(self, width: int, hidden: int, *, spectral: bool) -> None:
        super().__init__()
        self.first = normed(nn.Conv2d(width, hidden, 1), spectral=spectral)
        self.second = normed(nn.Conv2d(hidden, width, 1), spectral=spectral)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps like `maps` [B, width, H, W]."""
        found: Tensor = self.second(leaky(self.first(maps)))
        return found
