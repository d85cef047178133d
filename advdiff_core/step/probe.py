"""What a perturbation may ask during its search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from advdiff_core.interfaces.perturbation import scale_of
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.step.queries import View
from advdiff_core.types import Budget

if TYPE_CHECKING:
    from advdiff_core.step.step import TrainStep

__all__ = ["ViewProbe"]


class ViewProbe:
    """See `advdiff_core.interfaces.perturbation.Probe`.

    Args:
        step: The step whose view is searched.
        view: Name of that view.
    """

    def __init__(self, step: TrainStep, view: str) -> None:
        declared = step.scene.views[view]
        assert declared.base is not None
        assert declared.perturbation is not None
        self.step = step
        self.base: str = declared.base
        self.perturbation = declared.perturbation
        self.probes = View(view).probes(step.scene)

    def at(self, delta: Tensor) -> TrainStep:
        """The step with its base view moved by `delta` [B, ...]; see the protocol."""
        noised, perturbation = self.step.get(View(self.base)), self.perturbation
        budget = Budget("linf", 0.0, perturbation.unit)
        shift = delta * scale_of(budget, noised, self.step.domain)
        eps = perturbation.target(noised, delta, shift)
        return self.step.at(self.base, noised.x_t + shift, eps=eps, allowed=self.probes)

    def gradient(self, objective: Tensor, delta: Tensor) -> Tensor:
        """Gradient [B, ...] of the objective [B] towards `delta` [B, ...] alone."""
        return input_gradient(objective, delta)
