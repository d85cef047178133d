"""Pictures of samples as PNG: grids of images with captions, scatter plots of points."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from torch import Tensor

    from advdiff_core.types import Domain

__all__ = ["grid_png", "points_png", "rows_png"]

Row = tuple[str, "Tensor"]

PAPER = (255, 255, 255)
INK = (64, 64, 72)
FAINT = (222, 222, 228)
DOT = (38, 84, 164, 96)
MARGIN = 12
CAPTION = 24
#: A tile is enlarged to at least this many pixels, and a line is at most this wide.
TILE = 56
WIDTH = 1100
PANEL = 300
MAX_POINTS = 2000


def rows_png(rows: Sequence[Row], domain: Domain | None = None) -> bytes:
    """Images [N, C, H, W] as a grid, points [N, D] as scatter plots.

    Args:
        rows: Caption and samples, all of one shape.
        domain: Range of the values of images; [-1, 1] if None.
    """
    is_image = rows[0][1].ndim == 4
    low, high = (domain.low, domain.high) if domain is not None else (-1.0, 1.0)
    return grid_png(rows, low=low, high=high) if is_image else points_png(rows)


def grid_png(
    rows: Sequence[Row], *, low: float = -1.0, high: float = 1.0, columns: int | None = None
) -> bytes:
    """A PNG with a caption and a grid of tiles per row.

    Tiny images are enlarged by a whole factor without smoothing, so that each pixel is seen as it
    is. One channel is grey, three are RGB; of any other number the first is shown.

    Args:
        rows: Caption and images [N, C, H, W]; at least one image.
        low: Value shown black.
        high: Value shown white.
        columns: Tiles per line; as many as fit in about 1,100 pixels if None, at most 16.
    """
    tiles = [(caption, _tiles(images, low, high)) for caption, images in rows]
    width = tiles[0][1].shape[2]
    most = max(len(images) for _, images in tiles)
    columns = columns or max(1, min(most, 16, WIDTH // (width + 2)))
    blocks = [(caption, _mosaic(images, columns)) for caption, images in tiles]
    page_width = 2 * MARGIN + columns * (width + 2) - 2
    page_height = MARGIN + sum(CAPTION + block.shape[0] + MARGIN for _, block in blocks)
    page = Image.new("RGB", (max(page_width, 2 * MARGIN + 160), page_height), PAPER)
    top = MARGIN
    for caption, block in blocks:
        _write(page, (MARGIN, top), caption)
        page.paste(Image.fromarray(block), (MARGIN, top + CAPTION))
        top += CAPTION + block.shape[0] + MARGIN
    return _png(page)


def _tiles(images: Tensor, low: float, high: float) -> NDArray[np.uint8]:
    """[N, C, H, W] to enlarged RGB bytes [N, H', W', 3]; what is not a number is black."""
    values = images.detach().float().cpu().numpy()
    scaled = np.nan_to_num((values - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    levels = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    levels = levels if levels.shape[1] == 3 else np.repeat(levels[:, :1], 3, axis=1)
    factor = max(1, math.ceil(TILE / max(levels.shape[2:])))
    enlarged = levels.repeat(factor, axis=2).repeat(factor, axis=3)
    return np.ascontiguousarray(enlarged.transpose(0, 2, 3, 1))


def _mosaic(tiles: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Tiles [N, H, W, 3] in lines of `columns`, two pixels of paper between them."""
    count, height, width = tiles.shape[:3]
    lines = math.ceil(count / columns)
    shape = (lines * (height + 2) - 2, columns * (width + 2) - 2, 3)
    page = np.full(shape, PAPER[0], np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        page[top : top + height, left : left + width] = tile
    return page


def points_png(rows: Sequence[Row]) -> bytes:
    """Scatter plots side by side, one per row, on the same axes.

    Two dimensions are drawn as they are. Of more, the principal axes of the first row are drawn:
    first against second, and below it first against third, where the thickness of a plane is seen.

    Args:
        rows: Caption and points [N, D].
    """
    clouds = [points.detach().float().cpu().numpy().astype(np.float64) for _, points in rows]
    views = _views(clouds[0])
    page = Image.new("RGB", _page_size(len(rows), len(views)), PAPER)
    for line, (names, axes) in enumerate(views):
        box = _limits(clouds[0] @ axes)
        for column, ((caption, _), cloud) in enumerate(zip(rows, clouds, strict=True)):
            left = MARGIN + column * (PANEL + MARGIN)
            top = MARGIN + CAPTION + line * (PANEL + MARGIN + CAPTION)
            if line == 0:
                _write(page, (left, MARGIN), caption)
            _panel(page, (left, top), cloud @ axes, box)
            _write(page, (left, top + PANEL + 4), names, size=12)
    return _png(page)


def _page_size(columns: int, lines: int) -> tuple[int, int]:
    width = MARGIN + columns * (PANEL + MARGIN)
    return width, MARGIN + CAPTION + lines * (PANEL + MARGIN + CAPTION)


def _views(cloud: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64]]]:
    """Names and projections [D, 2] of the views."""
    size = cloud.shape[1]
    if size == 1:
        return [("value, against nothing", np.array([[1.0, 0.0]]))]
    if size == 2:
        return [("x (right), y (up)", np.eye(2))]
    finite = _finite(cloud)
    _, _, axes = np.linalg.svd(finite - finite.mean(axis=0), full_matrices=True)
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(size), largest])[:, None]
    names = "principal axes {} (right) and {} (up) of the first row"
    return [(names.format(1, other + 1), axes[[0, other]].T) for other in (1, 2)]


def _finite(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points without NaN and infinity; the origin if there are none."""
    finite = points[np.isfinite(points).all(axis=1)]
    return finite if len(finite) else np.zeros((1, points.shape[1]))


def _limits(flat: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Centre and half width of a square that holds nearly all points, outliers left out."""
    finite = _finite(flat)
    low, high = np.percentile(finite, [1, 99], axis=0)
    return (low + high) / 2, float(max((high - low).max() * 0.65, 1e-6))


def _panel(page: Image.Image, corner: tuple[int, int], flat: NDArray[np.float64], box: Any) -> None:
    centre, half = box
    inside = flat[:MAX_POINTS][(np.abs(flat[:MAX_POINTS] - centre) < half).all(axis=1)]
    scale = 2 * PANEL / (2 * half)
    # Drawn twice as large and reduced, for smooth dots.
    panel = Image.new("RGB", (2 * PANEL, 2 * PANEL), PAPER)
    draw = ImageDraw.Draw(panel, "RGBA")
    for right, up in (inside - centre) * scale:
        x, y = PANEL + right, PANEL - up
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=DOT)
    page.paste(panel.resize((PANEL, PANEL), Image.Resampling.LANCZOS), corner)
    left, top = corner
    ImageDraw.Draw(page).rectangle((left, top, left + PANEL - 1, top + PANEL - 1), outline=FAINT)


def _write(page: Image.Image, corner: tuple[int, int], text: str, *, size: int = 15) -> None:
    ImageDraw.Draw(page).text(corner, text[:120], fill=INK, font=ImageFont.load_default(size))


def _png(page: Image.Image) -> bytes:
    buffer = io.BytesIO()
    page.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
