"""Differentiable augmentation of what a discriminator looks at (Zhao et al. 2020).

A query, and not a part of the discriminator: its numbers are keyed by step and sample, so that
neither micro-batches nor processes change them, and any discriminator may have it.
"""

from __future__ import annotations

from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.query import Query, Setup, Step
from advdiff_core.types import Domain, expand

__all__ = ["POLICIES", "DiffAugmented", "diff_augment"]

#: What may be done to an image, in the order it is done.
POLICIES = ("color", "translation", "cutout")

#: Largest shift, as a share of height and width (Zhao et al. 2020).
SHIFT = 1 / 8
#: Side of the square that is cut out, as a share of height and width.
CUT = 1 / 2


@frozen
class DiffAugmented(Query[Tensor]):
    """Images [B, C, H, W] of another query, augmented; gradients pass.

    Attributes:
        of: The images.
        policy: What is done, some of `POLICIES`.
        domain: Range of the images.
        stream: Stream of the random numbers: equal ones move and colour alike.
    """

    of: Query[Tensor]
    policy: tuple[str, ...]
    domain: Domain = field(repr=False)
    stream: str

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The images."""
        del setup
        return (self.of,)

    def compute(self, step: Step) -> Tensor:
        """Augment each image by numbers of its own."""
        images = step.get(self.of)
        draws = step.rng(f"augment/{self.stream}")
        return diff_augment(images, self.policy, draws, self.domain)


def diff_augment(x: Tensor, policy: tuple[str, ...], draws: Draws, domain: Domain) -> Tensor:
    """Images after the changes of a policy, differentiable in `x`.

    On the [-1, 1] scale: brightness is shifted by up to 0.5, saturation scaled by 0 to 2 and
    contrast by 0.5 to 1.5; the image is moved by up to an eighth; a square of half the size is cut
    out. What comes in or is cut is grey, the middle of the range. Nothing is clamped.

    Args:
        x: Images [B, C, H, W].
        policy: What is done, some of `POLICIES`.
        draws: Random numbers; each change has a stream of its own.
        domain: Range of the images.
    """
    for name in POLICIES:
        if name in policy:
            x = _CHANGES[name](x, draws.child(name), domain)
    return x


def _color(x: Tensor, draws: Draws, domain: Domain) -> Tensor:
    brightness, saturation, contrast = (
        expand(draws.uniform((len(x),)).to(x.dtype), x) for _ in range(3)
    )
    x = x + (brightness - 0.5) * (domain.span / 2)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (contrast + 0.5)


def _translation(x: Tensor, draws: Draws, domain: Domain) -> Tensor:
    middle = (domain.low + domain.high) / 2
    x = x - middle
    for dim in (2, 3):
        most = round(x.shape[dim] * SHIFT)
        x = _moved(x, draws.integers((len(x),), -most, most + 1), dim)
    return x + middle


def _moved(x: Tensor, shift: Tensor, dim: int) -> Tensor:
    """Images [B, C, H, W] moved along `dim` by `shift` [B] pixels, zeros coming in."""
    size = x.shape[dim]
    source = torch.arange(size, device=x.device) - shift[:, None]
    inside = (source >= 0) & (source < size)
    shape = [len(x), 1, 1, 1]
    shape[dim] = size
    index = source.clamp(0, size - 1).reshape(shape).expand_as(x)
    return x.gather(dim, index) * inside.reshape(shape).to(x.dtype)


def _cutout(x: Tensor, draws: Draws, domain: Domain) -> Tensor:
    middle = (domain.low + domain.high) / 2
    keep = 1 - _span(x, draws, 2) * _span(x, draws, 3)
    return middle + (x - middle) * keep


def _span(x: Tensor, draws: Draws, dim: int) -> Tensor:
    """Ones [B, 1, H, 1] or [B, 1, 1, W] along a random span of half the size, cut at the edge."""
    size = x.shape[dim]
    length = round(size * CUT)
    centre = draws.integers((len(x),), 0, size + (1 - length % 2))[:, None]
    place = torch.arange(size, device=x.device)
    first = centre - length // 2
    shape = [len(x), 1, 1, 1]
    shape[dim] = size
    return ((place >= first) & (place < first + length)).reshape(shape).to(x.dtype)


_CHANGES = {"color": _color, "translation": _translation, "cutout": _cutout}
