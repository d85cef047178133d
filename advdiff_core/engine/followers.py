"""Target networks: roles whose weights are an average of another role's, used in training."""

from __future__ import annotations

import torch
from attrs import define
from torch import Tensor, nn

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.time_sampler import TimeSampler

__all__ = ["Follower"]


@define(kw_only=True, eq=False)
class Follower:
    """One target network.

    Attributes:
        name: Its role.
        leader: Role that it follows.
        module: Its network.
        source: Network of that role.
        rate: Decay per update.
        levels: Number of noise levels at which the decay is `rate`; 0 if it never changes.
    """

    name: str
    leader: str
    module: nn.Module
    source: nn.Module
    rate: float
    levels: int = 0

    def start(self, times: TimeSampler | None) -> None:
        """Take over the leader's weights.

        Args:
            times: The law of training times, whose levels the decay may depend on.

        Raises:
            RecipeError: R10 if the networks differ, or if there are no levels to depend on.
        """
        if self.levels and (times is None or times.levels(0) is None):
            message = f"the decay of {self.name!r} depends on a grid, and no law refines one"
            self._refuse("follow.levels", message, "take `levels` out, or name a law with a grid")
        ours, theirs = self.module.state_dict(), self.source.state_dict()
        odd = [k for k in (*theirs, *ours) if _shape(ours.get(k)) != _shape(theirs.get(k))]
        if odd:
            message = f"{self.name!r} cannot follow {self.leader!r}: they differ in {odd[0]!r}"
            self._refuse("follow", message, f"write the keys of models.{self.leader} in both")
        self.module.load_state_dict(theirs)

    def _refuse(self, key: str, message: str, fix: str) -> None:
        where = f"models.{self.name}.{key}"
        raise RecipeError([Fault(code="R10", key=where, message=message, fix=fix)])

    @torch.no_grad()
    def update(self, levels: int | None) -> None:
        """Follow the leader after its optimizer has moved.

        Args:
            levels: Noise levels in use now, of a law that refines a grid.
        """
        decay = self.decay(levels)
        ours: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(self.source.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        for own, buffer in zip(self.module.buffers(), self.source.buffers(), strict=True):
            own.copy_(buffer)

    def decay(self, levels: int | None) -> float:
        """Decay of an update: `rate^(levels / N)` with N levels in use (Song et al., 2023)."""
        if not self.levels or levels is None:
            return self.rate
        return float(self.rate ** (self.levels / levels))


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
