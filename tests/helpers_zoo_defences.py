"""Planted defences that make a robust accuracy look good, each wrong in one way of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DEFENCES", "Wrapped"]


class Wrapped(nn.Module):
    """A classifier as a function of another one and of the input.

    Args:
        net: The honest classifier.
        rule: From the classifier and inputs [B, ...] to logits [B, K].
    """

    def __init__(self, net: nn.Module, rule: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.rule = rule
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """What the rule makes of it."""
        return self.rule(self.net, x)


def no_grad(net: nn.Module, x: Tensor) -> Tensor:
    """A forward without a graph."""
    with torch.no_grad():
        return net(x)


class _OtherGradient(torch.autograd.Function):
    """The identity, whose gradient is that of something else."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """The input."""
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        """The gradient of another pixel."""
        return grads[0].roll((3, 2), (2, 3))


def shattered(net: nn.Module, x: Tensor) -> Tensor:
    """A ripple whose slope is forty times that of the image under it."""
    return net(x + 0.02 * torch.sin(2000 * x))


def noisy(net: nn.Module, x: Tensor) -> Tensor:
    """Noise on the input, fresh at each call."""
    return net(x + 0.1 * torch.randn(x.shape))  # the global generator: what such defences do


def reseeded(net: nn.Module, x: Tensor) -> Tensor:
    """The same noise at each call."""
    return net(x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3)))


def optimising(net: nn.Module, x: Tensor) -> Tensor:
    """Two steps towards what the classifier is surer of, before it is asked."""
    moved = x.detach().clone()
    for _ in range(2):
        moved.requires_grad_()
        with torch.enable_grad():
            sure = net(moved).logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(sure, moved)
        moved = (moved + 0.02 * gradient.sign()).detach()
    return net(x + moved - x.detach())


def abstaining(net: nn.Module, x: Tensor) -> Tensor:
    """No answer where the two best logits are near each other."""
    logits = net(x)
    top = logits.topk(2, dim=1).values
    return logits.masked_fill((top[:, :1] - top[:, 1:]) < 2.0, torch.nan)


class Dropping(nn.Module):
    """Dropout left on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the input with holes."""
        return self.net(self.drop(x))


class Normalising(nn.Module):
    """A batch norm in front, left in train mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.norm = nn.BatchNorm2d(1, affine=False).train()
        self.norm.running_mean.fill_(0.305)
        self.norm.running_var.fill_(0.14)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the input brought to the statistics of all digits."""
        return self.net(0.374 * self.norm(x) + 0.305)


def _wrapped(rule: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    return lambda net: Wrapped(net, rule)


#: By name: how it is made of an honest classifier, and the flag it has to raise.
DEFENCES: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "logits times a thousand": (_wrapped(lambda net, x: 1e3 * net(x)), "logit-scale"),
    "logits times a hundred thousand": (_wrapped(lambda net, x: 1e5 * net(x)), "logit-scale"),
    "logits times twenty": (_wrapped(lambda net, x: 20 * net(x)), "logit-scale"),
    "rounded input": (_wrapped(lambda net, x: net((4 * x).round() / 4)), "zero-gradient"),
    "detached input": (_wrapped(lambda net, x: net(x.detach()) + 0 * x.sum()), "gradient-cut"),
    "no graph": (_wrapped(no_grad), "gradient-cut"),
    "another gradient": (
        _wrapped(lambda net, x: net(_OtherGradient.apply(x))), "gradient-cut",
    ),
    "part of the gradient": (
        _wrapped(lambda net, x: net(0.9 * x.detach() + 0.1 * x)), "gradient-cut",
    ),
    "shattered gradient": (_wrapped(shattered), "rough-gradient"),
    "probabilities": (_wrapped(lambda net, x: F.softmax(net(x), 1)), "probabilities"),
    "noise": (_wrapped(noisy), "randomised"),
    "noise with a seed": (_wrapped(reseeded), "inner-sampling"),
    "dropout on": (lambda net: Dropping(net).train(), "train-mode"),
    "statistics of the batch": (Normalising, "batch-dependent"),
    "statistics that move": (Normalising, "moving-statistics"),
    "optimisation inside": (_wrapped(optimising), "inner-optimisation"),
    "abstention": (_wrapped(abstaining), "not-finite"),
    "made for [-1, 1]": (_wrapped(lambda net, x: net((x + 1) / 2)), "input-scale"),
    "made for [0, 255]": (_wrapped(lambda net, x: net(x / 255)), "input-scale"),
    "classes in another order": (_wrapped(lambda net, x: net(x).roll(1, 1)), "label-map"),
}  # fmt: skip
