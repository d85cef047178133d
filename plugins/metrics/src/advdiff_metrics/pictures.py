"""The picture of memorization: two histograms, and the samples nearest to training images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advdiff_core.types import Domain
from advdiff_metrics.images import unit_images

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

__all__ = ["memorization_picture"]

WIDTH, CHART, TILE, EDGE = 640, 220, 64, 20
SAMPLES, TRAINING, INK = (196, 78, 82), (76, 114, 176), (40, 40, 40)


def memorization_picture(
    told: Mapping[str, Any], samples: Tensor, training: Tensor, domain: Domain
) -> Image:
    """Histograms above, pairs below: samples in the upper row, their training images in the lower.

    Args:
        told: `edges`, and shares per bin as `samples` and `training_images`; `threshold`.
        samples: The samples nearest to training images [P, C, H, W].
        training: Those training images [P, C, H, W].
        domain: Range of valid values of both.
    """
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (WIDTH, CHART + 2 * TILE + 3 * EDGE), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    top = max(*told["samples"], *told["training_images"], 1e-9)
    _bars(draw, told["training_images"], top, TRAINING, wide=1.0)
    _bars(draw, told["samples"], top, SAMPLES, wide=0.5)
    _axis(draw, told)
    for row, images in enumerate((samples, training)):
        for column, tile in enumerate(unit_images(images, domain)):
            array = (tile * 255).byte().permute(1, 2, 0).numpy()
            shown = Image.fromarray(array).resize((TILE, TILE), Image.Resampling.NEAREST)
            picture.paste(shown, (EDGE + column * (TILE + 8), CHART + EDGE + row * (TILE + 8)))
    return picture


def _bars(
    draw: ImageDraw, shares: Sequence[float], top: float, colour: tuple[int, ...], *, wide: float
) -> None:
    step = (WIDTH - 2 * EDGE) / len(shares)
    for place, share in enumerate(shares):
        left = EDGE + place * step
        height = (CHART - 3 * EDGE) * share / top
        if height > 0:
            foot = CHART - EDGE
            draw.rectangle((left, foot - height, left + step * wide - 1, foot), fill=colour)


def _axis(draw: ImageDraw, told: Mapping[str, Any]) -> None:
    low, high = told["edges"][0], told["edges"][-1]
    foot = CHART - EDGE
    draw.line((EDGE, foot, WIDTH - EDGE, foot), fill=INK)
    draw.text((EDGE, foot + 3), f"{low:.3f}", fill=INK)
    draw.text((WIDTH - EDGE - 30, foot + 3), f"{high:.3f}", fill=INK)
    draw.text((EDGE, 3), "nearest training image, cosine: samples", fill=SAMPLES)
    draw.text((EDGE + 260, 3), "training images", fill=TRAINING)
    place = EDGE + (WIDTH - 2 * EDGE) * (told["threshold"] - low) / (high - low)
    if EDGE <= place <= WIDTH - EDGE:
        draw.line((place, 2 * EDGE, place, foot), fill=INK)
