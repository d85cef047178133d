"""Frozen roles, as components that are built after them may run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from attrs import frozen
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.interfaces.component import ModelInfo
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule
    from advdiff_core.types import DataInfo, Prediction

__all__ = ["FrozenNetwork", "Worn", "noise_at"]


@frozen(kw_only=True)
class Worn:
    """How a network was worn as a denoiser while it was trained.

    Attributes:
        parametrization: What it predicted: "eps", "x0", "v", "flow" or "edm".
        sigma_data: Standard deviation of the data that it assumed.
        noise: `(t, alpha, sigma)` at the smallest, the middle and the largest time; see `noise_at`.
    """

    parametrization: str
    sigma_data: float
    noise: tuple[tuple[float, float, float], ...]


def noise_at(schedule: NoiseSchedule) -> tuple[tuple[float, float, float], ...]:
    """`(t, alpha, sigma)` of a schedule at its smallest, its middle and its largest time."""
    times = torch.tensor([schedule.t_min, 0.0, schedule.t_max], dtype=torch.float64)
    times[1] = schedule.snap(times.sum() / 2)
    columns = (times, schedule.alpha(times), schedule.sigma(times))
    first, middle, last = zip(*(column.tolist() for column in columns), strict=True)
    return first, middle, last


class FrozenNetwork(Protocol):
    """The network of a frozen role outside of any step: in eval mode, without gradient.

    `Build.network` gives it to alignment targets and discriminators, whose passes of it count as
    their own. Terms and perturbations go through `step.network`, which counts them for the role.
    """

    @property
    def info(self) -> ModelInfo:
        """What the recipe says of the role, and its taps."""

    @property
    def trained_on(self) -> DataInfo | None:
        """The data its initial weights were trained on; None if nobody knows."""

    @property
    def trained_as(self) -> Worn | None:
        """How its initial weights were worn in training; None if nobody knows."""

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
        self,
        x: Tensor,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Output of a network without parametrization at `x` [B, ...]; see `Network.classify`.

        With `through` gradients pass to `x`, as a discriminator on frozen features needs them.
        """

    def modulated(
        self, tap: str, features: Tensor, t: Tensor, labels: Tensor | None = None
    ) -> Tensor:
        """Features [B, ...] at a tap as the next layer reads them; see `Backbone.modulated`."""
