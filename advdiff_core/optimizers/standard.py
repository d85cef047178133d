"""Optimizers of torch with keys of their own: `adamw`, `adam`, `radam`, `sgd`."""

from __future__ import annotations

import torch
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.interfaces.optimizer import Optimizer
from advdiff_core.optimizers import keys
from advdiff_core.optimizers.groups import NamedParameters, build_optimizer
from advdiff_core.settings import setting, settings

__all__ = ["SGD", "Adam", "AdamW", "RAdam"]


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    @settings
    class Settings:
        """Keys of `use = "adamw"`."""

        lr: float = keys.learning_rate(2e-4)
        betas: tuple[float, ...] = keys.betas()
        eps: float = keys.eps()
        weight_decay: float = keys.weight_decay(
            0.01, "share of the weights, times lr, lost per step"
        )
        decay: str = keys.decay_rule()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.AdamW, parameters, self.settings, self.build.path)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); weight decay, if any, is added to the gradient."""

    @settings
    class Settings:
        """Keys of `use = "adam"`."""

        lr: float = keys.learning_rate(2e-4)
        betas: tuple[float, ...] = keys.betas()
        eps: float = keys.eps()
        weight_decay: float = keys.weight_decay(0.0, "times the weights, added to the gradient")
        decay: str = keys.decay_rule()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.Adam, parameters, self.settings, self.build.path)


class RAdam(Optimizer):
    """Adam with rectified variance, which needs no warm-up (Liu et al. 2020)."""

    @settings
    class Settings:
        """Keys of `use = "radam"`."""

        lr: float = keys.learning_rate(2e-4)
        betas: tuple[float, ...] = keys.betas()
        eps: float = keys.eps()
        weight_decay: float = keys.weight_decay(0.0, "decay of the weights")
        decoupled_weight_decay: bool = setting(
            True, help="decay as in AdamW; false: added to the gradient"
        )
        decay: str = keys.decay_rule()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.RAdam, parameters, self.settings, self.build.path)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum."""

    @settings
    class Settings:
        """Keys of `use = "sgd"`."""

        lr: float = keys.learning_rate(0.01)
        momentum: float = setting(0.9, help="momentum; 0 for none", ge=0, lt=1)
        nesterov: bool = keys.nesterov()
        weight_decay: float = keys.weight_decay(0.0, "times the weights, added to the gradient")
        decay: str = keys.decay_rule()

    def make(self, parameters: NamedParameters) -> TorchOptimizer:
        """See `Optimizer.make`."""
        return build_optimizer(torch.optim.SGD, parameters, self.settings, self.build.path)
