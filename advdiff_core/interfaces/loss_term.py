"""Loss terms: one number per sample."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advdiff_core.interfaces.module import ModuleComponent

if TYPE_CHECKING:
    from advdiff_core.interfaces.query import Query, Step

__all__ = ["LossTerm"]


class LossTerm(ModuleComponent):
    """A term of a player's objective.

    Set `self.needs` in `__init__` to every query that `forward` asks the step for. The core alone
    weights, reduces over the batch, runs backward and steps; a term that owns parameters (a
    projection head) has them trained by the player that lists it.

    Attributes:
        needs: The queries read by `forward`.
    """

    needs: tuple[Query[Any], ...] = ()

    @abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]: unweighted, mean over its elements, finite, with a graph."""
