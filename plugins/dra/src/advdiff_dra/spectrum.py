"""Where in the spectrum a perturbation or an input gradient lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["BANDS", "Spectrum", "frequencies", "radial"]

#: Ends of the bands in cycles per pixel: thirds of the way to 1/2, the corners in the last.
BANDS = {"low": (0.0, 1 / 6), "mid": (1 / 6, 1 / 3), "high": (1 / 3, math.inf)}


def frequencies(height: int, width: int) -> Tensor:
    """Length of the frequency at each place of a shifted map [H, W], in cycles per pixel."""
    rows = torch.fft.fftshift(torch.fft.fftfreq(height, dtype=torch.float64))
    columns = torch.fft.fftshift(torch.fft.fftfreq(width, dtype=torch.float64))
    return (rows[:, None].square() + columns[None].square()).sqrt()


def radial(plane: Tensor) -> list[tuple[float, float]]:
    """Mean of a map [H, W] over rings one frequency wide: (cycles per pixel, mean)."""
    length = max(plane.shape)
    rings = (frequencies(*plane.shape) * length).round().long()
    sums = torch.zeros(int(rings.max()) + 1, dtype=torch.float64)
    sums.index_add_(0, rings.flatten(), plane.double().flatten())
    counts = torch.bincount(rings.flatten(), minlength=len(sums))
    return [
        (number / length, float(total / count))
        for number, (total, count) in enumerate(zip(sums, counts, strict=True))
        if count
    ]


class Spectrum:
    """Mean magnitude map and energy by band of images that come in batches.

    Of each image `|FFT2|` is taken by channel (orthonormal, so that energies are those of the
    image, by Parseval), averaged over channels and scaled to sum 1: each image counts the same,
    however long. Images that are zero everywhere are left out and counted.

    Attributes:
        count: Images taken in.
        empty: Images left out.
    """

    def __init__(self, height: int, width: int) -> None:
        self.count = self.empty = 0
        self._magnitude = torch.zeros(height, width, dtype=torch.float64)
        self._energy = torch.zeros(height, width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take in images [B, C, H, W]."""
        whole = torch.fft.fftshift(torch.fft.fft2(x.double(), norm="ortho"), dim=(-2, -1)).abs()
        alive = whole.flatten(1).amax(1) > 0
        whole = whole[alive]
        for found, kept in ((whole, self._magnitude), (whole.square(), self._energy)):
            plane = found.mean(1)
            kept += (plane / plane.sum(dim=(1, 2), keepdim=True)).sum(0)
        self.count += int(alive.sum())
        self.empty += int((~alive).sum())

    @property
    def magnitude(self) -> Tensor:
        """Mean magnitude map [H, W], zero frequency in the middle; sums to 1."""
        return self._magnitude / max(self.count, 1)

    @property
    def energy(self) -> Tensor:
        """Mean map of energies [H, W]; sums to 1."""
        return self._energy / max(self.count, 1)

    def bands(self, plane: Tensor) -> dict[str, float]:
        """Sum of a map [H, W] over each of `BANDS`."""
        length = frequencies(*plane.shape)
        return {
            name: float(plane[(length >= low) & (length < high)].sum())
            for name, (low, high) in BANDS.items()
        }
