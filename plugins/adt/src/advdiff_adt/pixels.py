"""Discriminators that learn from pixels alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from advdiff_adt.heads import leaky
from advdiff_adt.labels import LabelMap
from advdiff_adt.spectral import advance, normed
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.discriminator import Discriminator
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.layers import GroupNorm, image_shape
from advdiff_core.settings import setting, settings

__all__ = ["Conditional", "Patch"]

#: A layer has at most this many times the channels of the first one.
WIDEST = 8


@settings
class PixelSettings:
    """Keys of a discriminator on pixels."""

    channels: int = setting(64, ge=1, help="channels of the first layer; each doubles them, to 8x")
    layers: int = setting(3, ge=1, help="layers after the first one, each of which halves the size")
    norm: bool = setting(False, help="a group norm over all channels after each but the first")
    spectral_norm: bool = setting(True, help="divide weights by their largest singular value")


class Patch(Discriminator):
    """Convolutions on pixels, and a logit for each patch of the image (PatchGAN).

    After Isola et al. (2017, section 3.2.2): strided 4x4 convolutions. Differs from the source in
    what keeps it stable, spectral norm (Miyato et al. 2018) in place of batch norm: a score depends
    on its own image alone. Logits are [B, N], all positions.
    """

    @settings
    class Settings(PixelSettings):
        """Keys of `use = "patch"`."""

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.trunk = _Trunk(settings, build, "patch")
        last = nn.Conv2d(self.trunk.width, 1, 3, padding=1)
        self.last = normed(last, spectral=settings.spectral_norm)

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, N]; see `Discriminator.forward`."""
        del reference, labels
        logits: Tensor = self.last(self.trunk(x))
        return logits.flatten(1)

    def updated(self) -> None:
        """One power iteration; see `ModuleComponent.updated`."""
        advance(self)


class Conditional(Discriminator):
    """Convolutions on pixels, projected on the label of the image.

    After Miyato and Koyama (2018, eq. 3): the sum over positions of what `patch` has before its
    last layer, times an embedding of the label plus one that all labels share. Differs from the
    source in that the layers are not residual. Without label the shared part judges alone.
    Logits are [B, 1].
    """

    @settings
    class Settings(PixelSettings):
        """Keys of `use = "conditional"`."""

        classes: int = setting(0, ge=0, help="classes; 0: those of the data")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        classes = settings.classes or (build.data.classes if build.data is not None else 0)
        if not classes:
            fix = "train on data with labels, or take patch"
            refuse(build, "classes", "the data have no labels to condition on", fix)
        self.trunk = _Trunk(settings, build, "conditional")
        self.labels = LabelMap(classes, self.trunk.width)

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, 1]; see `Discriminator.forward`."""
        del reference
        pooled: Tensor = self.trunk(x).flatten(2).sum(2, keepdim=True)
        logits: Tensor = self.labels(pooled, labels)
        return logits

    def updated(self) -> None:
        """One power iteration; see `ModuleComponent.updated`."""
        advance(self)


class _Trunk(nn.Module):
    """A 3x3 convolution, and strided ones that halve the size.

    Args:
        settings: Channels, layers and norms.
        build: What the discriminator is told of the data.
        use: Name of the discriminator in a recipe.

    Attributes:
        width: Channels that come out.

    Raises:
        RecipeError: R10 if the data are no images, or too small to be halved so often.
    """

    def __init__(self, settings: Any, build: Build, use: str) -> None:
        super().__init__()
        channels, *size = image_shape(build, use)
        if min(size) < 2**settings.layers:
            message = f"{settings.layers} layers cannot halve images of {size[0]}x{size[1]}"
            most = min(size).bit_length() - 1
            refuse(build, "layers", message, f"write {most} or fewer" if most else "take points")
        widths = [settings.channels * min(2**n, WIDEST) for n in range(settings.layers + 1)]
        spectral = settings.spectral_norm
        self.first = normed(nn.Conv2d(channels, widths[0], 3, padding=1), spectral=spectral)
        self.layers = nn.ModuleList(
            normed(nn.Conv2d(low, high, 4, stride=2, padding=1), spectral=spectral)
            for low, high in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            GroupNorm(1, width) if settings.norm else nn.Identity() for width in widths[1:]
        )
        self.width = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, width, H, W] of images `x` [B, C, H, W]."""
        h = leaky(self.first(x))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = leaky(norm(layer(h)))
        return h
