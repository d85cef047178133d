"""The best point of each sample that a search has seen."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core import expand

__all__ = ["Best"]


class Best:
    """Best points so far: a broken sample beats one that is not, then the larger loss wins.

    A tie keeps the older point, so that a search that finds nothing returns the clean one.

    Args:
        x: Points to begin with [B, ...].
        loss: The attack's objective there [B].
        broken: Samples beaten there [B], bool; None where that is undefined.
    """

    def __init__(self, x: Tensor, loss: Tensor, broken: Tensor | None) -> None:
        self.x = x.detach()
        self.loss = loss.detach()
        self.broken = torch.zeros_like(loss, dtype=torch.bool) if broken is None else broken

    def update(
        self, x: Tensor, loss: Tensor, broken: Tensor | None, rows: Tensor | None = None
    ) -> None:
        """Take the points that are better than what is held.

        Args:
            x: New points [N, ...].
            loss: The objective there [N].
            broken: Samples beaten there [N], or None.
            rows: Samples they belong to [N], int64; None for all of them.
        """
        held = self.broken if rows is None else self.broken[rows]
        most = self.loss if rows is None else self.loss[rows]
        beaten = torch.zeros_like(held) if broken is None else broken
        better = (beaten & ~held) | ((beaten == held) & (loss.detach() > most))
        self._put("x", torch.where(expand(better, x), x.detach(), self._get("x", rows)), rows)
        self._put("loss", torch.where(better, loss.detach(), most), rows)
        self._put("broken", held | beaten, rows)

    def _get(self, name: str, rows: Tensor | None) -> Tensor:
        whole: Tensor = getattr(self, name)
        return whole if rows is None else whole[rows]

    def _put(self, name: str, part: Tensor, rows: Tensor | None) -> None:
        whole = getattr(self, name)
        setattr(self, name, part if rows is None else whole.index_copy(0, rows, part))
