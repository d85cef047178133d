"""Running means that stay on the device until a tick reads them."""

from __future__ import annotations

import torch
from torch import Tensor

from advdiff_core.engine.distributed import World

__all__ = ["Stats"]


class Stats:
    """Sums and counts by name; float64 where the device has it.

    Args:
        device: Where values are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.dtype = torch.float32 if device.type == "mps" else torch.float64
        self.device = device
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, name: str, values: Tensor) -> None:
        """Add every element of `values`, of any shape, without a host synchronisation."""
        values = values.detach().to(self.dtype)
        entry = torch.stack([values.sum(), values.new_tensor(float(values.numel()))])
        self.sums[name] = self.sums[name] + entry if name in self.sums else entry

    def means(self, world: World) -> dict[str, float]:
        """Mean by name over all processes since the last call; starts anew."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        table = world.sum(torch.stack([self.sums[name] for name in names])).tolist()
        self.sums = {}
        return {name: total / count for name, (total, count) in zip(names, table, strict=True)}

    def state(self) -> dict[str, Tensor]:
        """Sums so far, for a checkpoint between two ticks."""
        return {name: value.cpu() for name, value in self.sums.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore sums."""
        self.sums = {name: value.to(self.device) for name, value in state.items()}
