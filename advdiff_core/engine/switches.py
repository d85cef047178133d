"""Switches of torch that hold for a whole process, set for a run and put back behind it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from advdiff_core.step.scene import Compute

__all__ = ["CUBLAS", "compiled", "compiled_quietly", "tf32_switched", "torch_switches"]

#: Without it cuBLAS refuses to be deterministic; read when the first product of a process is made.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def torch_switches(run: Any) -> Iterator[None]:
    """Threads and determinism of a run.

    A run that need not repeat exactly lets cuDNN try its algorithms and keep the fastest.

    Args:
        run: Table `[run]` of its recipe.
    """
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tries = torch.backends.cudnn.benchmark
    if run.threads:
        torch.set_num_threads(run.threads)
    if run.deterministic:
        os.environ.setdefault(CUBLAS, ":4096:8")
    torch.use_deterministic_algorithms(run.deterministic)
    torch.backends.cudnn.benchmark = not run.deterministic
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = tries


@contextmanager
def tf32_switched(compute: Compute) -> Iterator[None]:
    """TF32 of products and convolutions, on a GPU; elsewhere nothing is touched."""
    if compute.device.type != "cuda":
        yield
        return
    products = torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if compute.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = compute.tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def compiled_quietly() -> Iterator[None]:
    """Without a warning that a user of `compile` can do nothing about.

    The compiler looks at `.grad` of each input that it traces, and torch warns of those that are no
    leaf: every perturbed input is one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor", UserWarning)
        yield


def compiled(module: nn.Module, how: bool | str) -> Callable[..., Any] | None:
    """The module as `torch.compile` runs it, or None if it is not compiled.

    Args:
        module: A network.
        how: Whether to compile, or a mode: "reduce-overhead" and "max-autotune" record CUDA graphs
            on a GPU, for networks so small that launching their kernels takes longer than these do.
            Who runs such a network says where a step begins: what a graph has returned is
            overwritten from then on.
    """
    if not how:
        return None
    found: Callable[..., Any] = torch.compile(module, mode=how if isinstance(how, str) else None)
    return found
