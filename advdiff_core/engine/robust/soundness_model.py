"""A classifier under inspection: its logits, what they cost, and what it does inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Inside", "Inspected", "Loss", "cross_entropy", "margin"]

#: Loss [B] of logits [B, K] and labels [B]; larger is better for the attacker.
Loss = Callable[[Tensor, Tensor], Tensor]

#: How a program asks for gradients; `torch.func` ends in the first.
_GRADIENTS: tuple[Callable[..., Any], ...] = (
    torch.autograd.grad, torch.autograd.backward, Tensor.backward,
)  # fmt: skip

#: Operators that draw random numbers and do nothing else. Attention carries the tag of a random
#: operator too, for a dropout that is off.
_DRAWS = ("bernoulli", "exponential", "multinomial", "native_dropout", "normal", "poisson", "rand",
          "randint", "randn", "randperm", "uniform")  # fmt: skip


@define(eq=False)
class Inspected:
    """A network that counts its forwards and gradients while it is watched.

    Attributes:
        module: Inputs [B, ...] to logits [B, K]; frozen parameters.
        forwards: Forwards of single samples so far, whoever asked for them.
        gradients: Forwards that built a graph to the input.
    """

    module: nn.Module
    forwards: int = 0
    gradients: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what runs through the network in the body, and put its buffers back."""
        handle = self.module.register_forward_hook(self._count)
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            yield
        finally:
            handle.remove()
            for buffer, before in buffers:
                buffer.copy_(before)

    def _count(self, module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
        del module, output
        self.forwards += len(inputs[0])
        if inputs[0].requires_grad:
            self.gradients += len(inputs[0])

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...], without a graph."""
        with torch.no_grad():
            return self.traced(x).detach()

    def traced(self, x: Tensor) -> Tensor:
        """Logits [B, K] at `x` [B, ...], with whatever graph there is; float32 at least."""
        found: Tensor = self.module(x)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor | None]:
        """Logits [B, K] at `x` [B, ...], and the gradient of their loss; None if none reaches `x`.

        Args:
            x: Inputs [B, ...].
            y: Labels [B].
            loss: Of logits and labels, per sample [B].
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.traced(x)
            if not logits.requires_grad:
                return logits, None
            (found,) = torch.autograd.grad(loss(logits, y).sum(), x, allow_unused=True)
        return logits.detach(), found


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest logit of another class minus that of class `y` [B]; positive where misclassified."""
    own = F.one_hot(y, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [B] of `logits` [B, K] for classes `y` [B]."""
    return F.cross_entropy(logits, y, reduction="none")


@define(eq=False)
class Inside:
    """What a network asks of torch during one forward; seen by modes of this thread alone.

    Neither a tracer nor a counter of the process is touched, so that the next network, and a
    debugger, find everything as it was.

    Attributes:
        gradients: Requests for gradients.
        draws: Draws of random numbers.
    """

    gradients: int = 0
    draws: int = 0

    def run(self, call: Callable[[], Tensor]) -> Tensor:
        """What `call()` returns."""
        with _Requests(self), _Draws(self):
            return call()


class _Requests(TorchFunctionMode):
    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self.inside = inside

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        self.inside.gradients += any(func is known for known in _GRADIENTS)
        return func(*args, **(kwargs or {}))


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, inside: Inside) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside = inside

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        random = torch.Tag.nondeterministic_seeded in func.tags
        name = str(func).split(".")[1].rstrip("_").removesuffix("_like")
        self.inside.draws += random and name in _DRAWS
        return func(*args, **(kwargs or {}))
