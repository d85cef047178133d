"""Optimizers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.interfaces.component import Component

__all__ = ["Optimizer"]


class Optimizer(Component):
    """Makes a `torch.optim.Optimizer` for a player.

    Contract: the made optimizer keeps all of its state in tensors and plain numbers in
    `state_dict()`, and reads the learning rate from `param_groups` at every step. Settings have a
    key `lr`.
    """

    @abstractmethod
    def make(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> TorchOptimizer:
        """An optimizer over `(name, parameter)` pairs in this order, a group per decay rule."""
