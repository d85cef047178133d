"""A component that is also a torch module."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from advdiff_core.interfaces.component import Build, Component

__all__ = ["ModuleComponent"]


class ModuleComponent(nn.Module, Component):
    """Base of components with parameters: `super().__init__(settings, build)` first, then layers.

    The core builds it under a random state keyed by seed and place in the recipe, so layers may use
    torch's own initialisation; adding another component never changes the weights drawn here. A
    player trains every parameter but those that the constructor left with `requires_grad = False`.

    Attributes:
        supports_double_backward: True if gradients of gradients work in every layer, as penalties
            on a gradient (R1) need them; fused attention breaks them.
    """

    supports_double_backward: bool = True

    def __init__(self, settings: Any, build: Build) -> None:
        nn.Module.__init__(self)
        Component.__init__(self, settings, build)

    @property
    def draws_random(self) -> bool:
        """True if a forward in train mode draws from torch's global generator.

        The core then keys that generator around each forward. Found by looking for dropout layers;
        override where a network draws in other ways (label dropout, stochastic depth).
        """
        return any(isinstance(part, _DropoutNd) and part.p > 0 for part in self.modules())

    def updated(self) -> None:
        """Called without gradient after each optimizer update of the player that trains it.

        For what follows the weights: an average of some of them (the twin heads of a siamese
        discriminator), the singular vectors of spectral norm. State has to be in buffers, or in
        parameters with `requires_grad = False`: a resumed run then goes on with the same bits. It
        draws no random numbers, and every process does the same. The default does nothing.
        """
