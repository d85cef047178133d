"""Samples under attack in parts of about the same size, of which settled ones are dropped.

A part of the right size keeps its activations in the cache of a processor, and fills a GPU,
whatever the caller's batch is; a sample that is settled costs nothing from the next interval on.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from advdiff_core import Victim

__all__ = ["BUCKET", "Buckets", "remaining", "settled"]

#: Samples in a part: small networks then keep to the cache of a core, and large ones fill a GPU.
SIZES = {"cpu": 128, "other": 512}
#: The key of attacks that are run so.
BUCKET = "samples attacked together, about; 0: 128 on a CPU, 512 elsewhere"


class Buckets:
    """The samples of a victim that are still attacked, in parts.

    Args:
        victim: What is attacked.
        count: Number of its samples.
        device: Where they are.
        size: Samples in a part, about: all parts have one size, give or take one sample, and are
            as many as bring it nearest; 0: 128 on a CPU, 512 elsewhere.

    Attributes:
        rows: Samples that are left, as places in the victim [N], int64.
        parts: Place of each part among the samples that are left, and its victim.
    """

    def __init__(self, victim: Victim, count: int, device: torch.device, *, size: int = 0) -> None:
        self.victim = victim
        self.rows = torch.arange(count, device=device)
        self._size = size or SIZES.get(device.type, SIZES["other"])
        self.parts: list[tuple[slice, Victim]] = list(self._cut())

    def keep(self, left: Tensor) -> Tensor | None:
        """Go on with some of the samples. Waits for the device: call it at intervals.

        Args:
            left: Which of the samples left [N], bool, are to stay.

        Returns:
            Places [M] among those left of the ones that stay; None if all do, as they must where
            the victim cannot be taken apart.
        """
        places = left.nonzero().squeeze(1)
        if len(places) == len(left) or (len(places) and self._whole()):
            return None
        self.rows = self.rows[places]
        self.parts = list(self._cut())
        return places

    def _whole(self) -> bool:
        return self.parts[0][1] is self.victim

    def _cut(self) -> Iterator[tuple[slice, Victim]]:
        start, count = 0, max(1, round(len(self.rows) / self._size))
        for rows in self.rows.tensor_split(count):
            part = self.victim.rows(rows)
            if part is None:
                yield slice(0, len(self.rows)), self.victim
                return
            yield slice(start, start + len(rows)), part
            start += len(rows)


def settled(victim: Victim, outputs: Tensor) -> Tensor:
    """Which samples of `outputs` [B, ...] are beaten [B], bool; none where that is undefined."""
    found = victim.broken(outputs)
    if found is None:
        return torch.zeros(outputs.shape[0], dtype=torch.bool, device=outputs.device)
    return found


def remaining(victim: Victim, broken: Tensor) -> tuple[Tensor, Victim]:
    """Samples that are not `broken` [B] yet, as places [N], and their victim. Waits for the device.

    All samples, and the victim itself, where it cannot be taken apart and some are left.
    """
    rows = (~broken).nonzero().squeeze(1)
    part = victim.rows(rows) if len(rows) else victim
    if part is None:
        return torch.arange(len(broken), device=broken.device), victim
    return rows, part
