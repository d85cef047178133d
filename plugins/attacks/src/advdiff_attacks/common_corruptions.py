"""Common corruptions of images in five severities, computed from their constants.

The kinds and constants are those that Hendrycks and Dietterich (2019) publish for CIFAR-10-C, for
images of 32 pixels; lengths grow with the image. The images of that benchmark are fixed files made
by other programs (ImageMagick, OpenCV, 8-bit rounding between steps), so numbers measured here are
near those and not the same. Ours: the clouds of fog (octaves instead of diamond-square), bilinear
motion blur, and no rounding. Frost, snow, spatter and glass blur are left out: they need pictures,
or a loop over pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from advdiff_attacks import image_filters as filters

__all__ = ["CORRUPTIONS", "Kind", "corrupt_image"]

#: Size of the images that the lengths are given for.
SIZE = 32

Make = Callable[[Tensor, tuple[float, ...], torch.Generator], Tensor]


@frozen(kw_only=True)
class Kind:
    """A kind of corruption.

    Attributes:
        make: Damages an image [C, H, W] in [0, 1], with the constants of a severity.
        levels: Constants of the severities 1 to 5.
        channels: Numbers of channels it is defined for; any if empty.
    """

    make: Make
    levels: tuple[tuple[float, ...], ...]
    channels: tuple[int, ...] = ()


def corrupt_image(x: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """An image [C, H, W] in [0, 1], damaged.

    Args:
        x: Image [C, H, W], values in [0, 1].
        name: A name in `CORRUPTIONS`.
        severity: 1 to 5.
        generator: Source of random numbers, on the CPU.
    """
    kind = CORRUPTIONS[name]
    return kind.make(x, kind.levels[severity - 1], generator).clamp(0.0, 1.0)


def _scale(x: Tensor) -> float:
    return max(x.shape[1:]) / SIZE


def _gaussian_noise(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    return x + c[0] * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    return torch.poisson(x * c[0], generator=generator) / c[0]


def _impulse_noise(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    struck = torch.rand(x.shape, generator=generator)
    return x.masked_fill(struck < c[0] / 2, 0.0).masked_fill(struck >= 1 - c[0] / 2, 1.0)


def _speckle_noise(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    return x + x * c[0] * torch.randn(x.shape, generator=generator)


def _gaussian_blur(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    return filters.gaussian_blur(x, c[0] * _scale(x))


def _defocus_blur(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    return filters.convolve(x, filters.disk(c[0] * _scale(x), c[1]))


def _motion_blur(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    angle = (float(torch.rand((), generator=generator)) - 0.5) * math.pi / 2
    return filters.streak(x, c[0] * _scale(x), c[1] * _scale(x), angle)


def _zoom_blur(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    factors = [1 + step / 100 for step in range(round(100 * (c[0] - 1)) + 1)]
    return (x + sum(filters.zoomed(x, factor) for factor in factors)) / (len(factors) + 1)


def _fog(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    clouds = filters.plasma((x.shape[1], x.shape[2]), c[1], generator)
    top = float(x.max())
    return (x + c[0] * clouds) * (top / (top + c[0]))


def _brightness(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """The value of HSV, which is the largest channel, is raised; hue and saturation stay."""
    del generator
    value = x.amax(0, keepdim=True)
    raised = (value + c[0]).clamp_max(1.0)
    return torch.where(value > 0, x * raised / value.clamp_min(1e-12), raised.expand_as(x))


def _contrast(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    mean = x.mean(dim=(1, 2), keepdim=True)
    return (x - mean) * c[0] + mean


def _saturate(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """The saturation of HSV becomes `c0 s + c1`; hue (red for greys) and value stay."""
    del generator
    value = x.amax(0, keepdim=True)
    depth = value - x
    saturation = depth.amax(0, keepdim=True) / value.clamp_min(1e-12)
    wanted = (saturation * c[0] + c[1]).clamp(0.0, 1.0)
    grey = torch.cat([torch.zeros_like(value), value, value]) * wanted
    scaled = depth * wanted / saturation.clamp_min(1e-12)
    return value - torch.where(saturation > 0, scaled, grey)


def _pixelate(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    high, wide = x.shape[1:]
    small = (max(int(wide * c[0]), 1), max(int(high * c[0]), 1))
    planes = [Image.fromarray(plane.numpy()) for plane in x.float().cpu().contiguous()]
    box = Image.Resampling.BOX
    resized = [np.asarray(plane.resize(small, box).resize((wide, high), box)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).to(x)


def _jpeg(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    del generator
    pixels = (x * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if x.shape[0] == 1 else pixels)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=int(c[0]))
    found = np.array(Image.open(stored)).reshape(pixels.shape)
    return torch.from_numpy(found).permute(2, 0, 1).to(x) / 255


def _elastic(x: Tensor, c: tuple[float, ...], generator: torch.Generator) -> Tensor:
    """A random affine map that moves three points, then a smooth random field."""
    height, sigma, jitter = (part * SIZE * _scale(x) for part in c)
    field = torch.rand(2, *x.shape[1:], generator=generator) * 2 - 1
    if sigma > 0:
        field = filters.gaussian_blur(field, sigma, truncate=3.0)
    return filters.warped(x, _jittered(x, jitter, generator), height * field)


def _jittered(x: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """The affine map [2, 3] of offsets that moves three corners of a square by up to `jitter`."""
    third = min(x.shape[1:]) / 3
    corners = torch.tensor([[third, third, 1], [third, -third, 1], [-third, -third, 1]])
    moved = corners[:, :2] + jitter * (2 * torch.rand(3, 2, generator=generator) - 1)
    return torch.linalg.solve(_basis(moved), corners[:, :2]).T


def _basis(points: Tensor) -> Tensor:
    """Three points [3, 2] as rows with a 1 [3, 3], to solve for an affine map."""
    return torch.cat([points, torch.ones(3, 1)], dim=1)


def _levels(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


#: Every kind by name.
CORRUPTIONS: Mapping[str, Kind] = MappingProxyType({
    "gaussian-noise": Kind(make=_gaussian_noise, levels=_levels(0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot-noise": Kind(make=_shot_noise, levels=_levels(500, 250, 100, 75, 50)),
    "impulse-noise": Kind(make=_impulse_noise, levels=_levels(0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle-noise": Kind(make=_speckle_noise, levels=_levels(0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian-blur": Kind(make=_gaussian_blur, levels=_levels(0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus-blur": Kind(
        make=_defocus_blur, levels=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    ),
    "motion-blur": Kind(make=_motion_blur, levels=((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom-blur": Kind(make=_zoom_blur, levels=_levels(1.06, 1.11, 1.16, 1.21, 1.26)),
    "fog": Kind(make=_fog, levels=((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": Kind(make=_brightness, levels=_levels(0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Kind(make=_contrast, levels=_levels(0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturate": Kind(
        make=_saturate, levels=((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), channels=(3,)
    ),
    "pixelate": Kind(make=_pixelate, levels=_levels(0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": Kind(make=_jpeg, levels=_levels(80, 65, 58, 50, 40), channels=(1, 3)),
    "elastic": Kind(
        make=_elastic,
        levels=(
            (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
    ),
})  # fmt: skip
