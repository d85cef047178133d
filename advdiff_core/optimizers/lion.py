"""Lion: the sign of an interpolated momentum, with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.optimizers import keys
from advdiff_core.optimizers.groups import NamedParameters, build_optimizer
from advdiff_core.settings import settings

__all__ = ["Lion", "LionSteps"]


class LionSteps(TorchOptimizer):
    """The steps of Chen et al. (2023, algorithm 2), over all parameters of a group at once.

    With the gradient g, the momentum m and betas (b1, b2): `theta` moves by
    `-lr (sign(b1 m + (1 - b1) g) + weight_decay theta)`, then `m` becomes `b2 m + (1 - b2) g`.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate: the length of every step of every weight.
        betas: Share of the momentum in the direction of a step, and its decay per step.
        weight_decay: Share of the weights, times lr, lost per step.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient; the loss, if a closure computes it."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                self._move(moved, group)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        lr, grads = group["lr"], [p.grad for p in parameters if p.grad is not None]
        momenta = [self._momentum(p) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        signs = torch._foreach_lerp(momenta, grads, 1 - first)
        torch._foreach_sign_(signs)
        torch._foreach_add_(parameters, signs, alpha=-lr)
        torch._foreach_lerp_(momenta, grads, 1 - second)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: Tensor = state["exp_avg"]
        return momentum


class Lion(Optimizer):
    """Steps by the sign of a momentum, half the state of AdamW's (Chen et al. 2023, algorithm 2).

    All weights move by `lr` in each step, so that `lr` is 3 to 10 times smaller than AdamW's, and
    `weight_decay` as many times larger (section 5 of the paper).
    """

    source: ClassVar[str] = "Chen et al. (2023, algorithm 2), arXiv 2302.06675"

    @settings
    class Settings:
        """Keys of `use = "lion"`."""

        lr: float = keys.learning_rate(1e-4)
        betas: tuple[float, ...] = keys.two_numbers(
            (0.9, 0.99), "share of the momentum in the direction of a step, and its decay per step"
        )
        weight_decay: float = keys.weight_decay(
            0.0, "share of the weights, times lr, lost per step"
        )
        decay: str = keys.decay_rule()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(LionSteps, parameters, self.settings, self.build.path)
