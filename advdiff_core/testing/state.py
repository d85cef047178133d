"""State that components must leave alone, taken before and compared after."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advdiff_core.testing.findings import Finding, wrong

__all__ = ["TORCH_STATE", "changes", "digest", "disturbed", "leaves", "module_state", "world_state"]

State = Mapping[str, object]


#: The parts of `world_state` that are torch's.
TORCH_STATE = frozenset({
    "torch's global generator", "the default dtype", "the default device", "torch's grad mode",
    "the number of threads", "deterministic algorithms", "the precision of matrix products",
})  # fmt: skip


def world_state() -> dict[str, object]:
    """State of the process that a component could disturb, by what a message calls it."""
    state: dict[str, object] = {
        "torch's global generator": digest(torch.random.get_rng_state()),
        "the generator of Python's random": hash(random.getstate()),
        "the default dtype": torch.get_default_dtype(),
        "the default device": str(torch.get_default_device()),
        "torch's grad mode": torch.is_grad_enabled(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of matrix products": torch.get_float32_matmul_precision(),
        "the blanket warning filters": _blanket_filters(),
        "the working directory": os.getcwd(),
    }
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        state["numpy's global generator"] = hash(str(numpy.random.get_state()[1:3]))
    return {**state, **{f"environment variable {k}": v for k, v in os.environ.items()}}


def _blanket_filters() -> tuple[object, ...]:
    """Filters that hush or raise warnings of everybody, not of one module."""
    return tuple(entry[0] for entry in warnings.filters if entry[1] is None and entry[3] is None)


def module_state(module: nn.Module) -> dict[str, object]:
    """Weights, buffers, gradients and flags of a network, by what a message calls them."""
    state: dict[str, object] = {}
    for name, parameter in module.named_parameters():
        state[f"parameter {name}"] = digest(parameter)
        state[f"requires_grad of {name}"] = parameter.requires_grad
        state[f".grad of {name}"] = None if parameter.grad is None else digest(parameter.grad)
    state |= {f"buffer {name}": digest(buffer) for name, buffer in module.named_buffers()}
    state |= {f"train mode of {n or 'it'}": part.training for n, part in module.named_modules()}
    return state


def digest(tensor: Tensor) -> tuple[object, ...]:
    """Type, shape and a hash of the bits of a tensor of any shape."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    bits = flat.view(torch.uint8) if flat.numel() else flat
    found = hashlib.blake2b(bits.numpy().tobytes(), digest_size=16).hexdigest()
    return tensor.dtype, tuple(tensor.shape), found


def changes(before: State, after: State) -> list[str]:
    """What differs between two states."""
    names = {**before, **after}
    return [name for name in names if before.get(name) != after.get(name)]


@contextmanager
def leaves(
    what: str, *modules: nn.Module, inputs: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Find fault if the block changes the process, a network or an input.

    Args:
        what: What runs in the block.
        modules: Networks it must leave as they are.
        inputs: Tensors of any shape that it must not edit, by name.
    """
    held = dict(inputs or {})

    def state() -> dict[str, object]:
        parts = [module_state(module) for module in modules]
        tensors = {f"its input {name}": digest(tensor) for name, tensor in held.items()}
        flags = {f"requires_grad of its input {n}": t.requires_grad for n, t in held.items()}
        return {
            **world_state(),
            **{k: v for part in parts for k, v in part.items()},
            **tensors,
            **flags,
        }

    before = state()
    yield
    found = sorted(changes(before, state()), key=_rank)
    if found:
        raise disturbed(what, found)


def disturbed(what: str, found: Sequence[str]) -> Finding:
    """The finding that `what` changes all that is in `found`."""
    return wrong(
        f"that {what} changes {' and '.join(found[:3])}",
        wanted="everything left as it was",
        mend=_mend(found[0]),
    )


#: What tells most of a mistake comes first: a switched mode explains a drawn number.
ORDER = ("train mode", "requires_grad", ".grad", "parameter", "its input", "buffer")


def _rank(name: str) -> int:
    return next((n for n, word in enumerate(ORDER) if name.startswith(word)), len(ORDER))


def _mend(first: str) -> str:
    if "generator" in first:
        return "draw from the generator or Draws it is given, never from a global one"
    if "input" in first:
        return "do not edit in place: write x = x + ..., or clone first"
    if first.startswith((".grad", "requires_grad", "parameter", "buffer")):
        return "take gradients with torch.autograd.grad towards the input, and restore what you set"
    if first.startswith("train mode"):
        return "never call train() or eval() on a network that is not yours"
    return "leave settings of the process to its user"
