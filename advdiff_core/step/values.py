"""Values of queries: the tensors in them, and the same without their graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["detached", "tensors_in"]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value: itself, or those in tuples, named tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)


def detached(value: Any) -> Any:
    """`value` without its graph: tensors, tuples, named tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple):
        parts = [detached(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [detached(part) for part in value]
    if isinstance(value, dict):
        return {key: detached(part) for key, part in value.items()}
    return value
