"""Discriminators."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from advdiff_core.interfaces.module import ModuleComponent

__all__ = ["Discriminator"]


class Discriminator(ModuleComponent):
    """Scores images; higher means more real.

    It may run the network of a frozen backbone of the recipe, got by `build.network` and kept as it
    is, with `classify(..., through=True)`: it is built after all backbones, and passes of such a
    network count as its own. What follows its weights (an average of them) moves in `updated`.

    Contract: scores of sample i depend on sample i (and its reference) alone in eval mode; inputs
    are not edited.

    Attributes:
        supports_double_backward: True if R1-like penalties (a gradient of a gradient) work.
    """

    supports_double_backward: bool = True

    @abstractmethod
    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B, ...], one or several per sample.

        Args:
            x: Images [B, C, H, W] (or points [B, D]) in the data's domain.
            reference: Images the siamese kinds compare with [B, C, H, W].
            labels: Class labels [B] for conditional kinds.
        """
