"""Frozen roles outside of any step; see `advdiff_core.interfaces.frozen_network`."""

from __future__ import annotations

from typing import cast

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import ModelInfo
from advdiff_core.interfaces.frozen_network import Worn
from advdiff_core.step.denoiser import full_features, precise
from advdiff_core.step.scene import Role
from advdiff_core.types import DataInfo, Prediction

__all__ = ["FrozenRole"]


@frozen(eq=False)
class FrozenRole:
    """See `advdiff_core.interfaces.frozen_network.FrozenNetwork`.

    Attributes:
        role: The role.
        trained_on: The data its initial weights were trained on; None if nobody knows.
        trained_as: How they were worn as a denoiser then; None if nobody knows.
    """

    role: Role
    trained_on: DataInfo | None = None
    trained_as: Worn | None = None

    @property
    def info(self) -> ModelInfo:
        """What the recipe says of the role, and its taps."""
        return self.role.info

    @torch.no_grad()
    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> Prediction:
        """Prediction of a denoiser at `x_t` [B, ...] and times `t` [B]."""
        found: Prediction = self.role.wear(
            self.role.call, x_t, t, labels, taps=taps, stop_at=stop_at
        )
        return found

    def classify(
        self,
        x: Tensor,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Output of a network without parametrization at `x` [B, ...]; a graph if `through`."""
        with torch.set_grad_enabled(through and torch.is_grad_enabled()):
            out = self.role.call(x, None, None, taps=taps, stop_at=stop_at)
            value = precise(out.output) if out.output is not None else x.new_empty(0)
            return Prediction("raw", value, x, features=full_features(out.features))

    @torch.no_grad()
    def modulated(
        self, tap: str, features: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, ...] at a tap as the next layer reads them."""
        network = cast("Backbone", self.role.module)
        c_noise = self.role.wear.noise_input(t).to(features.dtype)
        return precise(network.modulated(tap, features, c_noise, labels))
