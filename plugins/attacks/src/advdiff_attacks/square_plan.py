"""What Square decides before it asks anything: window sizes, places and signs of every query."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from advdiff_core import Draws

__all__ = ["Windows", "as_images", "bumps", "share_of", "tent", "windows"]

#: Queries after which the share of pixels in a window is halved (Andriushchenko et al. 2020,
#: section 4.1), of 10,000.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


@attrs.frozen
class Windows:
    """The windows of all queries, on the host, so that no query waits for a device.

    Attributes:
        sizes: Rows and columns of each window.
        places: First row and column.
        seconds: The same of a second window, from which mass is taken (L2, L1).
        signs: Sign of each channel [Q, 1, C, 1, 1], True for up (Linf); on the device of the draws.
        turned: Whether the bump is transposed, by query (L2, L1).
    """

    sizes: list[tuple[int, int]]
    places: list[tuple[int, int]]
    seconds: list[tuple[int, int]]
    signs: Tensor
    turned: list[bool]


def windows(  # noqa: PLR0913 - image, number, schedule and randomness.
    shape: tuple[int, int, int],
    queries: int,
    *,
    share: float,
    rescale: bool,
    bumpy: bool,
    draws: Draws,
) -> Windows:
    """Windows for images [C, H, W]; the same for all samples, whatever they are batched with.

    Args:
        shape: Channels, height and width.
        queries: How many.
        share: Share of the pixels in the first windows.
        rescale: Whether the schedule, made for 10,000 queries, is stretched to `queries`.
        bumpy: Windows of L2 and L1, odd and of at least three pixels.
        draws: Random numbers; only its shared generator is used.
    """
    channels, height, width = shape
    generator = draws.generator()
    drawn = torch.rand(queries, 5 + channels, generator=generator, device=generator.device)
    unit = drawn[:, :5].tolist()
    sizes = [
        window_size((height, width), share_of(i, queries, share=share, rescale=rescale), bumpy)
        for i in range(queries)
    ]
    room = [(height - rows + 1, width - columns + 1) for rows, columns in sizes]
    return Windows(
        sizes=sizes,
        places=[(int(u[0] * r), int(u[1] * c)) for u, (r, c) in zip(unit, room, strict=True)],
        seconds=[(int(u[2] * r), int(u[3] * c)) for u, (r, c) in zip(unit, room, strict=True)],
        turned=[u[4] > 0.5 for u in unit],
        signs=drawn[:, 5:].gt(0.5).reshape(queries, 1, channels, 1, 1),
    )


def share_of(query: int, queries: int, *, share: float, rescale: bool) -> float:
    """Share of the pixels that the window of a query has."""
    if rescale:
        query = int(query / queries * 10_000)
    return share / 2.0 ** sum(query > after for after in HALVED_AFTER)


def window_size(size: tuple[int, int], share: float, bumpy: bool) -> tuple[int, int]:
    """Rows and columns of a window with `share` of the pixels of an image of `size`."""
    side = max(round(math.sqrt(share * size[0] * size[1])), 3 if bumpy else 1)
    side += bumpy and side % 2 == 0
    return min(side, size[0]), min(side, size[1])


def tent(rows: int, columns: int, power: int) -> Tensor:
    """A bump [rows, columns], highest in the middle, float64 (Andriushchenko et al. 2020, eq. 2).

    Sum of `1 / (k + 1)^power` over the centred squares of radius k that a pixel is in.
    """
    reach = max(rows, columns) // 2 + 1
    heights = 1 / torch.arange(1, reach + 1, dtype=torch.float64) ** power
    heights = heights.flip(0).cumsum(0).flip(0)
    down = (torch.arange(rows) - rows // 2).abs()
    across = (torch.arange(columns) - columns // 2).abs()
    return heights[torch.maximum(down[:, None], across[None]).clamp_max(reach - 1)]


def bumps(rows: int, columns: int, power: int) -> Tensor:
    """A bump above a dent [rows, columns] of unit norm (L2 for power 2, L1 for 4), float64."""
    upper, lower = rows // 2, rows - rows // 2
    halves = [
        sign * tent(count, columns, power) / _length(tent(count, columns, power), power)
        for count, sign in ((upper, 1.0), (lower, -1.0))
        if count
    ]
    both = torch.cat(halves)
    return both / _length(both, power)


def as_images(x: Tensor) -> Tensor:
    """`x` [B, ...] seen as images [B, C, H, W]; vectors [B, D] are one row."""
    if x.dim() == 4:
        return x
    if x.dim() < 4:
        return x.reshape(x.shape[0], -1, 1, x.shape[-1])
    return x.flatten(1, x.dim() - 3)


def _length(values: Tensor, power: int) -> Tensor:
    return values.abs().sum() if power == 4 else values.square().sum().sqrt()
