"""Frozen roles, as components that are built after them may run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.interfaces.component import ModelInfo
    from advdiff_core.types import DataInfo, Prediction

__all__ = ["FrozenNetwork"]


class FrozenNetwork(Protocol):
    """The network of a frozen role outside of any step: in eval mode, without gradient.

    `Build.network` gives it to alignment targets, whose passes of it count as the target's own.
    Terms and perturbations go through `step.network`, which counts them for the role.
    """

    @property
    def info(self) -> ModelInfo:
        """What the recipe says of the role, and its taps."""

    @property
    def trained_on(self) -> DataInfo | None:
        """The data its initial weights were trained on; None if nobody knows."""

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> Prediction:
        """Prediction of a denoiser at `x_t` [B, ...] and times `t` [B]; see `Network.denoise`."""

    def classify(
        self, x: Tensor, *, taps: tuple[str, ...] = (), stop_at: str | None = None
    ) -> Prediction:
        """Output of a network without parametrization at `x` [B, ...]; see `Network.classify`."""

    def modulated(
        self, tap: str, features: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, ...] at a tap as the next layer reads them; see `Backbone.modulated`."""
