"""Adversarial weight perturbation: gradients where the weights are worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.settings import Spec, setting, settings

__all__ = ["AWP"]

#: Keeps a direction finite where a gradient is zero; the released code's value.
TINY = 1e-20


class AWP(Optimizer):
    """Another optimizer, with gradients at adversarially moved weights (Wu et al. 2020, AWP).

    Each matrix and kernel w of the networks moves by `gamma |w| g / |g|` along the gradient g of
    the player's objective on the adversarial images of the step (eqs. 8 and 9 with one step, norms
    of whole layers); biases, norms and the heads of terms stay. A second pass at the moved weights,
    on the same images, gives the gradient that is stepped with, from where the weights were.
    """

    @settings
    class Settings:
        """Keys of `use = "awp"`."""

        optimizer: Spec = setting(kind="optimizer", help="what steps")
        gamma: float = setting(
            0.005, ge=0.0,
            help="share of a layer's norm that it moves by: 0.005 with TRADES, 0.01 with pgd-at",
        )  # fmt: skip
        after: int = setting(
            0, ge=0, unit="images", help="images before it begins: 10 epochs with TRADES, else 0"
        )

        @property
        def lr(self) -> float:
            """The learning rate of what steps."""
            return float(self.optimizer.settings.lr)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.inner = cast("Optimizer", build.nested(settings.optimizer))
        # Without a radius there is nothing to pay a second pass for.
        self.displaced_from = settings.after if settings.gamma else None

    def make(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> TorchOptimizer:
        """The optimizer that steps."""
        return self.inner.make(parameters)

    def displace(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Move the layers of networks uphill; see `Optimizer.displace`."""
        moved: list[Tensor] = [p for name, p in parameters if _moves(name, p)]
        gradients = [p.grad for p in moved if p.grad is not None]
        if not moved:
            return
        sizes, slopes = torch._foreach_norm(moved), torch._foreach_norm(gradients)
        lengths = [
            self.settings.gamma * size / (slope + TINY)
            for size, slope in zip(sizes, slopes, strict=True)
        ]
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, lengths)))


def _moves(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith("models.") and parameter.dim() >= 2 and parameter.grad is not None
