"""What keeps foreign code from changing anything: global state, and the victim's model."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core import Victim
from advdiff_core.types import Domain

__all__ = ["ForeignNet", "contained"]


@contextmanager
def contained(seed: int) -> Iterator[None]:
    """Run foreign code with global generators seeded, and put everything back after it.

    Put back, also if it raises: the global generators of torch (every device in use), NumPy and
    Python, `sys.settrace`, warning filters, grad mode, default type and the switches of cuDNN. What
    it prints goes to stderr: stdout belongs to results.

    Args:
        seed: For all global generators; below 2**32.
    """
    with ExitStack() as stack:
        for read, write in _SWITCHES:
            stack.callback(write, read())
        stack.enter_context(warnings.catch_warnings())
        # Where warnings are errors, one about old names in their code would stop the attack.
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        stack.enter_context(redirect_stdout(sys.stderr))
        _seed(seed)
        yield


def _seed(seed: int) -> None:
    import numpy as np

    # torch.manual_seed would start CUDA's lazy set-up.
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed)  # noqa: NPY002 - foreign code draws from it.
    random.seed(seed)


def _numpy_state() -> Any:
    import numpy as np

    return np.random.get_state()  # noqa: NPY002 - the state foreign code draws from.


def _set_numpy_state(state: Any) -> None:
    import numpy as np

    np.random.set_state(state)  # noqa: NPY002 - as above.


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _cuda_states() -> list[Tensor]:
    return torch.cuda.get_rng_state_all() if _cuda_in_use() else []


def _set_cuda_states(states: list[Tensor]) -> None:
    for device, state in enumerate(states):
        torch.cuda.set_rng_state(state, device)


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(switches: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = switches


#: How a part of the global state is read and written.
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_rng_state, torch.set_rng_state),
    (_cuda_states, _set_cuda_states),
    (_numpy_state, _set_numpy_state),
    (random.getstate, random.setstate),
    (sys.gettrace, sys.settrace),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (_cudnn, _set_cudnn),
)


class ForeignNet(nn.Module):
    """A victim as a module that maps pixels in [0, 1] to logits, and shows nothing of its model.

    Foreign code can switch modes, move it, ask for gradients of parameters or clear them: the model
    behind is not reached, since this module has one parameter of its own and a backward pass
    through it goes to the pixels alone.

    Args:
        victim: What is attacked.
        like: Inputs whose type and device the victim sees; logits come in the type of the pixels.
        domain: Range that the victim's inputs lie in.
    """

    def __init__(self, victim: Victim, like: Tensor, domain: Domain) -> None:
        super().__init__()
        # Libraries ask the first parameter for the device.
        self.place = nn.Parameter(like.new_zeros(()), requires_grad=False)
        self._seen = like.dtype

        def run(pixels: Tensor) -> Tensor:
            return victim.outputs(domain.low + domain.span * pixels)

        # Hidden in a closure: a victim that is a module itself must not become a part of this one.
        self._run = run
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, K] at pixels [B, ...] in [0, 1]."""
        kind, pixels = pixels.dtype, pixels.to(self._seen)
        if torch.is_grad_enabled() and pixels.requires_grad:
            logits: Tensor = _ToPixels.apply(pixels, self._run)
            return logits.to(kind)
        with torch.no_grad():
            return self._run(pixels).to(kind)


class _ToPixels(torch.autograd.Function):
    """A function whose backward pass reaches its input, and no parameter."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Outputs [B, K] of `run` at `pixels` [B, ...]."""
        with torch.enable_grad():
            ctx.pixels = pixels.detach().requires_grad_()
            ctx.outputs = run(ctx.pixels)
        outputs: Tensor = ctx.outputs.detach().clone()
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Gradient [B, ...] towards the pixels, for `gradient` [B, K] of the outputs."""
        (towards,) = torch.autograd.grad(ctx.outputs, ctx.pixels, gradient, retain_graph=True)
        return towards, None
