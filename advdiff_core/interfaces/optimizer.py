"""Optimizers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Component

__all__ = ["Optimizer"]


class Optimizer(Component):
    """Makes a `torch.optim.Optimizer` for a player.

    Contract: the made optimizer keeps all of its state in tensors and plain numbers in
    `state_dict()`, and reads the learning rate from `param_groups` at every step. Settings have a
    key `lr`.

    An optimizer may want the gradient at other weights than those it steps from (adversarial weight
    perturbation, sharpness-aware minimisation). It then sets `displaced_from`: the core runs a
    first pass, which moves no running statistics, calls `displace`, runs a second pass at the moved
    weights on the same views, puts the weights back bit for bit, and steps with the gradients of
    the second pass.

    Attributes:
        displaced_from: Images from which on gradients are taken at displaced weights; None: never.
    """

    displaced_from: int | None = None

    def displace(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Move weights in place; `.grad` holds the gradients of the first pass, or None.

        Args:
            parameters: What `make` was given.
        """
        del parameters
        message = f"{type(self).__name__} displaces no weights"
        fix = "implement `displace`, or leave `displaced_from` at None"
        raise ContractError(message, where=self.build.path, fix=fix)

    @abstractmethod
    def make(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> TorchOptimizer:
        """An optimizer over `(name, parameter)` pairs in this order, a group per decay rule."""
