"""Whether images to test on were trained on: by digest of what they look like at 8 bits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.types import Domain

__all__ = ["Seen"]


class Seen:
    """The training images, as digests.

    Two images are the same if all their values are, rounded to one of 256 levels of the domain, so
    that neither a change of range nor the way a library scales pixels hides a copy. Values without
    a domain are compared as they are.

    Args:
        x: Training samples [N, ...].
        domain: Their range; None for data without one.
    """

    def __init__(self, x: Tensor, domain: Domain | None) -> None:
        self._domain = domain
        self._digests = set(self._of(x))
        self.count = len(x)

    def among(self, x: Tensor) -> int:
        """How many of the samples [B, ...], in the same domain, are training samples."""
        return sum(digest in self._digests for digest in self._of(x))

    def _of(self, x: Tensor) -> Iterator[bytes]:
        values = x.detach().cpu().float()
        if self._domain is not None:
            unit = (values - self._domain.low) / self._domain.span
            values = (unit * 255).round().clamp(0, 255).to(torch.uint8)
        for row in values.flatten(1).contiguous().numpy():
            yield hashlib.blake2b(row.tobytes(), digest_size=16).digest()
