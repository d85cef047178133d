"""Filters of single images [C, H, W] that corruptions are made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["convolve", "disk", "gaussian_blur", "plasma", "sample_at", "streak", "warped", "zoomed"]


def gaussian_blur(x: Tensor, sigma: float, *, truncate: float = 4.0) -> Tensor:
    """`x` [C, H, W] blurred by a Gaussian; beyond its edges the image repeats its outermost pixel.

    Args:
        x: Image [C, H, W].
        sigma: Standard deviation, pixels.
        truncate: Radius of the kernel in standard deviations.
    """
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return x
    steps = torch.arange(-radius, radius + 1, dtype=x.dtype)
    line = torch.exp(-0.5 * (steps / sigma).square())
    line = line / line.sum()
    return convolve(convolve(x, line[None, :]), line[:, None])


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel of `x` [C, H, W] with `kernel` [h, w] of odd sizes; edges are repeated."""
    high, wide = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = F.pad(x[:, None], (wide, wide, high, high), mode="replicate")
    return F.conv2d(padded, kernel.to(x)[None, None]).squeeze(1)


def disk(radius: float, alias_blur: float) -> Tensor:
    """Kernel [n, n] of an out-of-focus lens: a disk, softened by a 3x3 Gaussian; sums to 1.

    Args:
        radius: Radius of the disk, pixels.
        alias_blur: Standard deviation of the Gaussian, pixels.
    """
    reach = math.ceil(radius) + 1
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    inside = (steps[:, None].square() + steps.square() <= radius**2).float()
    line = torch.exp(-0.5 * (torch.tensor([-1.0, 0.0, 1.0]) / alias_blur).square())
    line = line / line.sum()
    soft = F.conv2d(inside[None, None], (line[:, None] * line)[None, None], padding=1)[0, 0]
    return soft / soft.sum()


def streak(x: Tensor, radius: float, sigma: float, angle: float) -> Tensor:
    """`x` [C, H, W] smeared towards one side, with weights that fall off as a Gaussian.

    Args:
        x: Image [C, H, W].
        radius: Half the length of the smear, pixels.
        sigma: Standard deviation of the weights, pixels.
        angle: Direction, radians.
    """
    steps = torch.arange(2 * round(radius) + 1, dtype=x.dtype)
    weights = torch.exp(-0.5 * (steps / sigma).square())
    weights = weights / weights.sum()
    rows, columns = _pixels(x)
    moved = [
        sample_at(x, rows + step * math.sin(angle), columns + step * math.cos(angle), edge="border")
        for step in steps.tolist()
    ]
    return torch.einsum("n,nchw->chw", weights, torch.stack(moved))


def sample_at(x: Tensor, rows: Tensor, columns: Tensor, *, edge: str = "reflection") -> Tensor:
    """Values of `x` [C, H, W] between its pixels, bilinearly [C, h, w].

    Args:
        x: Image [C, H, W].
        rows: Vertical positions [h, w], pixels from the first row.
        columns: Horizontal positions [h, w], pixels from the first column.
        edge: What lies beyond the edges: "reflection" or "border".
    """
    high, wide = x.shape[1:]
    across = 2 * columns / max(wide - 1, 1) - 1
    down = 2 * rows / max(high - 1, 1) - 1
    grid = torch.stack([across, down], dim=-1).to(x)
    found: Tensor = F.grid_sample(
        x[None], grid[None], mode="bilinear", padding_mode=edge, align_corners=True
    )
    return found[0]


def _pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(
        torch.arange(x.shape[1], dtype=x.dtype), torch.arange(x.shape[2], dtype=x.dtype),
        indexing="ij",
    )  # fmt: skip
    return rows, columns


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The centre of `x` [C, H, W], enlarged by `factor`."""
    rows, columns = _pixels(x)
    middle = ((x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2)
    return sample_at(
        x, middle[0] + (rows - middle[0]) / factor, middle[1] + (columns - middle[1]) / factor,
        edge="border",
    )  # fmt: skip


def warped(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """`x` [C, H, W] read at an affine map of each position about the centre, plus a shift.

    Args:
        x: Image [C, H, W].
        matrix: Map of (row, column) offsets from the centre and 1 [2, 3].
        shift: Further displacement of each pixel [2, H, W], pixels.
    """
    rows, columns = _pixels(x)
    middle = ((x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2)
    offsets = torch.stack([rows - middle[0], columns - middle[1], torch.ones_like(rows)])
    moved = torch.einsum("ij,jhw->ihw", matrix.to(x), offsets)
    return sample_at(x, middle[0] + moved[0] + shift[0], middle[1] + moved[1] + shift[1])


def plasma(shape: tuple[int, int], decay: float, generator: torch.Generator) -> Tensor:
    """Clouds [H, W] in [0, 1]: random octaves, each of twice the detail and 1 / decay the height.

    Args:
        shape: Size (H, W).
        decay: Factor between the heights of two octaves; above 1.
        generator: Source of random numbers.
    """
    total, height, size = torch.zeros(shape), 1.0, 2
    while size < 2 * max(shape):
        octave = torch.rand(1, 1, size + 1, size + 1, generator=generator)
        total += height * F.interpolate(octave, shape, mode="bilinear", align_corners=True)[0, 0]
        height, size = height / decay, 2 * size
    return (total - total.min()) / (total.max() - total.min()).clamp_min(1e-12)
