"""Exponential moving averages of weights, kept in float32, several per role."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import nn

__all__ = ["Ema", "EmaRule", "power_exponent"]


@frozen(kw_only=True)
class EmaRule:
    """How fast an average forgets; exactly one of the first three is set.

    Attributes:
        rate: Decay per update, for example 0.999, reached over a warm-up `(1 + n) / (10 + n)`.
        power: Relative width of the power-function profile of Karras et al. 2024 (EDM2, section
            3.1), for example 0.05; it needs no warm-up and is stated in images, not updates.
        halflife: Images after which the weight of an old value has halved.
        after: Images before averaging begins; the average is the weights themselves until then.
    """

    rate: float | None = None
    power: float | None = None
    halflife: float | None = None
    after: int = 0

    def decay(self, *, updates: int, nimg: float, batch: float) -> float:
        """Decay of the update that ends at `nimg` images, the `updates`-th one of an average.

        Counted from 0, once averaging has begun. One of several updates on a batch stands for a
        part of its images.
        """
        since = nimg - self.after
        if self.after and since <= 0:
            return 0.0
        if self.power is not None:
            return math.pow(1 - batch / max(since, batch), power_exponent(self.power) + 1)
        if self.halflife is not None:
            return math.pow(0.5, batch / self.halflife)
        assert self.rate is not None
        return min(self.rate, (1 + updates) / (10 + updates))


def power_exponent(width: float) -> float:
    """Exponent gamma of the power-function profile with relative standard deviation `width`.

    The positive root of `width^2 (g + 2)^2 (g + 3) = g + 1` (EDM2, equation 126), by bisection.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        gamma = (low + high) / 2
        relative = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
        low, high = (gamma, high) if relative > width else (low, gamma)
    return (low + high) / 2


class Ema:
    """One average of one module.

    Args:
        module: The module to follow.
        rule: How fast it forgets.
    """

    def __init__(self, module: nn.Module, rule: EmaRule) -> None:
        self.rule = rule
        self.updates = 0
        self._parameters = dict(module.named_parameters())
        self._buffers = dict(module.named_buffers())
        tensors = {**self._parameters, **self._buffers}
        self.shadow = {
            name: value.detach().float().clone() if value.is_floating_point() else value.clone()
            for name, value in tensors.items()
        }

    @torch.no_grad()
    def update(self, *, nimg: float, batch: float) -> None:
        """Follow the module after an optimizer step that ended at `nimg` images."""
        decay = self.rule.decay(updates=self.updates, nimg=nimg, batch=batch)
        shadow = [self.shadow[name] for name in self._parameters]
        values = [value.detach().float() for value in self._parameters.values()]
        torch._foreach_lerp_(shadow, values, 1 - decay)
        for name, value in self._buffers.items():
            self.shadow[name].copy_(value)
        self.updates += nimg > self.rule.after
