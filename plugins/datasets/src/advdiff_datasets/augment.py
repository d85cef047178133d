"""Augmentations of classifiers: random crops, flips, rotations and cut-mix, on whole batches."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.augmentation import Augmentation
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting, settings
from advdiff_core.types import Augmented, DataInfo

__all__ = ["Crop", "CutMix", "Flip", "Rotate", "fill_value", "image_info", "refuse"]


class Crop(Augmentation):
    """Pads the image on all sides and cuts its own size out of it at a random place.

    With the default `pad = 4` and black filling, the crop of CIFAR training (He et al., 2016,
    section 4.2).
    """

    @settings
    class Settings:
        """Keys of `use = "crop"`."""

        pad: int = setting(4, help="pixels added on each side", ge=1, le=4096)
        fill: Literal["black", "edge", "reflect"] = setting(
            "black", help="what is added: the lowest value, the edge pixel, or the mirrored image"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        info = image_info(build, "crop")
        self._low = fill_value(info)
        if settings.fill == "reflect" and settings.pad >= min(info.shape[1:]):
            size = "x".join(map(str, info.shape[1:]))
            message = f"found {settings.pad}, and images of {size} pixels have less to mirror"
            refuse(build, "pad", message, f"write at most {min(info.shape[1:]) - 1}")

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Shifted copies; see `Augmentation.augment`."""
        size, pad = len(batch.x), self.settings.pad
        places = rng.integers((size, 2), 0, 2 * pad + 1)
        padded = self._padded(batch.x, (pad,) * 4)
        height, width = batch.x.shape[2:]
        # A view of all windows [B, C, 2 pad + 1, 2 pad + 1, H, W]; chosen ones alone are copied.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(size, device=batch.x.device)
        return batch._replace(x=windows[rows, :, places[:, 0], places[:, 1]])

    def _padded(self, x: Tensor, pads: tuple[int, ...]) -> Tensor:
        if self.settings.fill == "black":
            return F.pad(x, pads, value=self._low)
        return F.pad(x, pads, mode="replicate" if self.settings.fill == "edge" else "reflect")


class Flip(Augmentation):
    """Mirrors images at random."""

    @settings
    class Settings:
        """Keys of `use = "flip"`."""

        chance: float = setting(0.5, help="share of images that are mirrored", ge=0, le=1)
        axis: Literal["horizontal", "vertical"] = setting(
            "horizontal", help="left and right, or top and bottom change places"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        image_info(build, "flip")

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Mirrored copies; see `Augmentation.augment`."""
        hit = rng.uniform((len(batch.x),)) < self.settings.chance
        axis = 3 if self.settings.axis == "horizontal" else 2
        return batch._replace(x=torch.where(hit[:, None, None, None], batch.x.flip(axis), batch.x))


class Rotate(Augmentation):
    """Rotates images about their centre by random angles; corners are filled with black."""

    @settings
    class Settings:
        """Keys of `use = "rotate"`."""

        degrees: float = setting(
            15.0, help="angles are uniform in [-degrees, degrees]", gt=0, le=180, unit="degrees"
        )
        interpolation: Literal["nearest", "bilinear"] = setting(
            "nearest", help="how values between pixels are found"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self._low = fill_value(image_info(build, "rotate"))

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Rotated copies; see `Augmentation.augment`."""
        limit = math.radians(self.settings.degrees)
        angles = rng.uniform((len(batch.x),), -limit, limit)
        return batch._replace(x=self.rotated(batch.x, angles))

    def rotated(self, x: Tensor, angles: Tensor) -> Tensor:
        """`x` [B, C, H, W] turned counter-clockwise by `angles` [B], in radians."""
        height, width = x.shape[2:]
        # Written out instead of a matrix product, whose rounding depends on the size of the batch.
        u = torch.arange(width, device=x.device) - (width - 1) / 2
        v = (torch.arange(height, device=x.device) - (height - 1) / 2)[:, None]
        cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
        across, down = cos * u - sin * v, sin * u + cos * v
        grid = torch.stack([across * (2 / width), down * (2 / height)], dim=-1)
        mode = self.settings.interpolation
        # Zeros come in from outside: black has to be zero meanwhile.
        turned = F.grid_sample(x - self._low, grid.to(x.dtype), mode=mode, align_corners=False)
        return turned + self._low


class CutMix(Augmentation):
    """Pastes a rectangle of another image in, and mixes the labels by area; for classifiers.

    Yun et al. (2019), with lambda uniform (their alpha = 1), one rectangle per image, and the other
    image from the same block of 32 samples. Labels become probabilities [B, K].
    """

    mixes = True

    @settings
    class Settings:
        """Keys of `use = "cutmix"`."""

        chance: float = setting(0.5, help="share of images that get a rectangle", ge=0, le=1)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self._classes = image_info(build, "cutmix").classes
        if not self._classes:
            refuse(build, "use", "'cutmix' mixes labels, and the data have none", "take it out")

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Mixed copies; see `Augmentation.augment`."""
        assert batch.y is not None, "checked against the dataset's description"
        mates, numbers = rng.partners(), rng.uniform((len(batch.x), 4))
        inside = self._rectangles(numbers, tuple(batch.x.shape[2:]))
        share = inside.float().mean((1, 2))[:, None]
        y = batch.y if batch.y.dim() == 2 else F.one_hot(batch.y, self._classes).float()
        x = torch.where(inside[:, None], batch.x[mates], batch.x)
        return batch._replace(x=x, y=y * (1 - share) + y[mates] * share)

    def _rectangles(self, numbers: Tensor, size: tuple[int, ...]) -> Tensor:
        """Where the other image goes [B, H, W], bool; from uniform `numbers` [B, 4]."""
        hit, side = numbers[:, 0] < self.settings.chance, numbers[:, 1].sqrt()
        within = []
        for length, centre in zip(size, (numbers[:, 2], numbers[:, 3]), strict=True):
            middle = (centre * length).floor()
            half = ((side * length).floor() / 2).floor()
            pixels = torch.arange(length, device=numbers.device)
            low, high = (middle - half)[:, None], (middle + half)[:, None]
            within.append((pixels >= low) & (pixels < high))
        return within[0][:, :, None] & within[1][:, None, :] & hit[:, None, None]


def image_info(build: Build, name: str) -> DataInfo:
    """The description of the data.

    Raises:
        RecipeError: R10 if they are no images.
    """
    assert build.data is not None, "an augmentation is built after its dataset"
    if not build.data.is_image:
        shape = list(build.data.shape)
        refuse(
            build, "use", f"{name!r} needs images, and the data have shape {shape}", "take it out"
        )
    return build.data


def fill_value(info: DataInfo) -> float:
    """Black: the lowest valid value."""
    return info.domain.low if info.domain is not None else 0.0


def refuse(build: Build, key: str, message: str, fix: str) -> Any:
    """Refuse a recipe whose parts do not fit.

    Raises:
        RecipeError: Always, R10.
    """
    raise RecipeError([Fault(code="R10", key=f"{build.path}.{key}", message=message, fix=fix)])
