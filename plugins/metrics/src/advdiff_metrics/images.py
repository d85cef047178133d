"""Images as feature extractors take them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain
from advdiff_metrics.faults import refused

__all__ = ["batches", "check_images", "resized", "unit_images"]


def check_images(build: Build) -> None:
    """Refuse data that are no colour or grey images with a range.

    Raises:
        RecipeError: R10 naming the metric's key.
    """
    data = build.data
    if data is None or not _are_images(data):
        found = None if data is None else list(data.shape)
        message = f"the data are {found}, wanted images [1 or 3, H, W] with a range"
        raise refused(build, "use", message, "take the metric out, or use image data")


def _are_images(data: DataInfo) -> bool:
    known = data.domain is not None and data.domain.span < float("inf")
    return known and data.is_image and data.shape[0] in (1, 3)


def unit_images(x: Tensor, domain: Domain) -> Tensor:
    """Images [B, 3, H, W] in [0, 1], rounded to 8 bits, as a saved picture holds them.

    Args:
        x: Images [B, C, H, W] in `domain`, one channel or three; values outside are clipped.
        domain: Range of valid values.
    """
    unit = ((x.float() - domain.low) / domain.span).clamp(0, 1)
    return (unit * 255).round().div(255).expand(-1, 3, -1, -1)


def resized(x: Tensor, size: int, mode: str = "bicubic") -> Tensor:
    """Images [B, C, size, size], resized with antialiasing and clipped to [0, 1].

    Args:
        x: Images [B, C, H, W] in [0, 1].
        size: Height and width.
        mode: "bicubic" or "bilinear".
    """
    if x.shape[-2:] == (size, size):
        return x
    scaled = F.interpolate(x, (size, size), mode=mode, antialias=True, align_corners=False)
    return scaled.clamp(0, 1)


def batches(x: Tensor, rows: int, device: torch.device) -> Iterator[Tensor]:
    """`x` [N, ...] in parts of at most `rows` samples, on the device."""
    for start in range(0, len(x), rows):
        yield x[start : start + rows].to(device)
