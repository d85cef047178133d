"""Alignment targets: frozen features to align with."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor

from advdiff_core.interfaces.module import ModuleComponent

if TYPE_CHECKING:
    from advdiff_core.draws import Draws

__all__ = ["AlignmentTarget"]


class AlignmentTarget(ModuleComponent):
    """Features of clean images from a frozen network.

    The network is its own, or that of a frozen backbone of the recipe, got by `build.network` and
    kept as it is: its passes count as the target's. Targets are built after all other roles.

    Contract: runs without gradient, in eval mode, in the target's own random stream, and never
    sees an adversarial input; the features of a sample do not depend on the rest of the batch.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Feature width D."""

    @abstractmethod
    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Detached features [B, D] or [B, N, D].

        Args:
            x0: Clean images [B, C, H, W] in the data's domain.
            labels: Class labels [B] or None.
            rng: Random numbers of this target (for example of its noise level).
        """
