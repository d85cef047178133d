"""Curves as files: a table for programs, a picture for people."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from advdiff_core.hooks.files import write_file

__all__ = ["Curves", "curves_png", "slug", "write_curves"]

#: Name of a curve, and its points in order.
Curves = Mapping[str, Sequence[tuple[float, float]]]

WIDTH, HEIGHT, LEFT, EDGE = 720, 400, 90, 40
INK, FAINT, PAPER = (40, 40, 48), (222, 222, 228), (255, 255, 255)
COLOURS = ((38, 84, 164), (196, 78, 82), (58, 138, 88), (150, 98, 178), (204, 138, 44))
TICKS = 5


def slug(text: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)


def write_curves(path: Path, x: str, curves: Curves, *, title: str = "") -> None:
    """Write `path` (.csv: curve, x, value) and the picture beside it (.png).

    Raises:
        StorageError: If the disk refuses.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["curve", x, "value"])
    writer.writerows([name, *point] for name, points in curves.items() for point in points)
    write_file(path.with_suffix(".csv"), out.getvalue())
    write_file(path.with_suffix(".png"), curves_png(x, curves, title=title))


def curves_png(x: str, curves: Curves, *, title: str = "") -> bytes:
    """A line per curve over `x`, with dots, a scale on both axes and a legend; PNG."""
    from PIL import Image, ImageDraw

    points = [point for line in curves.values() for point in line if math.isfinite(point[1])]
    scale = _Scale(points or [(0.0, 0.0)])
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    for share in (n / (TICKS - 1) for n in range(TICKS)):
        across, up = scale.values(share)
        left, top = scale.place(across, up)
        draw.line((LEFT, top, WIDTH - EDGE, top), fill=FAINT)
        draw.text((6, top - 6), f"{up:.4g}", fill=INK)
        draw.text((left - 8, HEIGHT - EDGE + 6), f"{across:.4g}", fill=INK)
    draw.text((LEFT, 8), title, fill=INK)
    draw.text((WIDTH - EDGE - 6 * len(x), HEIGHT - 16), x, fill=INK)
    for number, (name, line) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [scale.place(*point) for point in line if math.isfinite(point[1])]
        if len(places) > 1:
            draw.line(places, fill=colour, width=2)
        for left, top in places:
            draw.ellipse((left - 3, top - 3, left + 3, top + 3), fill=colour)
        draw.text((LEFT + 8, EDGE + 14 * number), name, fill=colour)
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


class _Scale:
    """Where values are in the picture."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.low = [min(point[axis] for point in points) for axis in (0, 1)]
        high = [max(point[axis] for point in points) for axis in (0, 1)]
        self.low[1] = min(self.low[1], 0.0)
        self.span = [(high[axis] - self.low[axis]) or 1.0 for axis in (0, 1)]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point."""
        across, up = (x - self.low[0]) / self.span[0], (y - self.low[1]) / self.span[1]
        return LEFT + across * (WIDTH - LEFT - EDGE), HEIGHT - EDGE - up * (HEIGHT - 2 * EDGE)

    def values(self, share: float) -> tuple[float, float]:
        """Values at a share of both axes."""
        return self.low[0] + share * self.span[0], self.low[1] + share * self.span[1]
