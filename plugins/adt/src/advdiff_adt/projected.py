"""Logits from heads on frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advdiff_adt.frozen_features import BackboneSettings, FrozenFeatures
from advdiff_adt.heads import Head
from advdiff_adt.labels import LabelMap
from advdiff_adt.spectral import advance
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.discriminator import Discriminator
from advdiff_core.layers import num_labels
from advdiff_core.settings import setting, settings

__all__ = ["Projected"]


class Projected(Discriminator):
    """Heads on frozen features, a logit at each position (StyleGAN-T).

    After Sauer et al. (2023, section 3.2): heads as those of `siamese`, without twins, predictor
    and reference, so that the two differ in the score alone. With labels, what the heads make at
    each position is projected on an embedding of the label (there: of the prompt). Differs from
    the source in the norm (`Head`), and in convolutions over positions in two dimensions.

    Logits are [B, N], all positions of all taps.

    Attributes:
        supports_double_backward: That of the frozen network.
    """

    @settings
    class Settings(BackboneSettings):
        """Keys of `use = "projected"`."""

        width: int = setting(64, ge=1, help="channels of the heads")
        conditional: bool = setting(False, help="project on the label")
        classes: int = setting(
            0, ge=0, help="classes of a conditional one; 0: those of the data",
            applies=("conditional", (True,)),
        )  # fmt: skip
        spectral_norm: bool = setting(
            True, help="divide weights by their largest singular value, as StyleGAN-T does"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.features = FrozenFeatures(settings, build)
        self.supports_double_backward = self.features.supports_double_backward
        classes = num_labels(build, conditional=settings.conditional, classes=settings.classes)
        outputs = settings.width if classes else 1
        self.heads = nn.ModuleList(
            Head(channels, settings.width, outputs, spectral=settings.spectral_norm)
            for channels in self.features.widths
        )
        self.labels = LabelMap(classes, outputs) if classes else None

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, N]; see `Discriminator.forward`."""
        del reference
        maps = [
            head(features).flatten(2)
            for head, features in zip(self.heads, self.features(x), strict=True)
        ]
        found = torch.cat(maps, dim=2)
        return found.squeeze(1) if self.labels is None else self.labels(found, labels)

    def updated(self) -> None:
        """One power iteration; see `ModuleComponent.updated`."""
        advance(self)
