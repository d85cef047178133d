"""How much memory a graph keeps, and how much tensors take at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

__all__ = ["kept_bytes", "peak_bytes"]


def kept_bytes(make: Callable[[], Tensor]) -> int:
    """Bytes that the graph of what `make` returns keeps for its backward, weights left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = make()
    assert found.requires_grad, "a graph without gradients keeps nothing"
    return sum(kept.values())


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that tensors made during `run` held at once, by the CPU's allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        run()
    results = found.profiler
    assert results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
