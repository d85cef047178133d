"""Gradients at displaced weights: one more pass, the move, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.interfaces.optimizer import Optimizer

__all__ = ["Displacement"]


@frozen(kw_only=True)
class Displacement:
    """What moves the weights of a player for the length of a pass.

    Attributes:
        component: The optimizer's component, whose rule it is.
        parameters: `(name, parameter)` pairs of the player.
    """

    component: Optimizer
    parameters: Sequence[tuple[str, nn.Parameter]]

    def due(self, nimg: int | None) -> bool:
        """Whether it takes part in the step that begins at `nimg` images; ever, if None."""
        begins = self.component.displaced_from
        return begins is not None and (nimg is None or begins <= nimg)

    @contextmanager
    def moved(self, first_pass: Callable[[], None]) -> Iterator[None]:
        """Run the body at displaced weights; every bit of them is put back after it.

        Args:
            first_pass: Adds the gradients at the weights as they are to `.grad`.
        """
        weights: list[Tensor] = [parameter for _, parameter in self.parameters]
        gathered = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        first_pass()
        before = [weight.detach().clone() for weight in weights]
        try:
            with torch.no_grad():
                self.component.displace(self.parameters)
            for weight, gradient in zip(weights, gathered, strict=True):
                weight.grad = gradient
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
