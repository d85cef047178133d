"""The sets of weights in what a file holds, and their tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from attrs import define, field
from torch import Tensor

from advdiff_core.engine.importing.objects import Inert, Storage, TensorRef
from advdiff_core.engine.importing.rules import as_array
from advdiff_core.engine.tensor_file import DTYPES, MAX_TENSORS
from advdiff_core.errors import DataError

__all__ = ["State", "find_states", "load_state", "skeleton"]

Leaf: TypeAlias = Tensor | TensorRef | Inert

_MAX_DEPTH = 4
_MAX_MODULES = 200_000
_MAX_NESTING = 64
_MAX_NAME = 512
#: Bytes of all tensors together, as a multiple of the file: views may share a storage.
_MAX_SHARING = 8
_MAX_CONFIG = 2_000


@define(eq=False)
class State:
    """Named tensors in a file.

    Attributes:
        key: Where in the file: "" for the whole, else keys joined by dots.
        tensors: Tensors by name, not read yet.
        config: What its modules were made with, by class, where the file says so.
    """

    key: str
    tensors: dict[str, Leaf] = field(repr=False)
    config: dict[str, Any] = field(factory=dict)


def find_states(tree: Any, where: str) -> list[State]:
    """Every dict of tensors and every module in a file, from the outside in.

    Raises:
        DataError: Q10 beyond the limits on number, depth and length.
    """
    return list(_walk(tree, (), where))


def _walk(node: Any, path: tuple[str, ...], where: str) -> Iterator[State]:
    if _is_module(node):
        state = State(".".join(path), {})
        _flatten(node, state, where)
        if state.tensors:
            yield state
    elif isinstance(node, dict) and len(path) < _MAX_DEPTH:
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and _is_leaf(v)}
        if tensors:
            yield _checked(State(".".join(path), tensors), where)
        for key, value in node.items():
            if isinstance(key, str):
                yield from _walk(value, (*path, key), where)


def _is_leaf(value: Any) -> bool:
    if isinstance(value, Inert):
        return value.kind == "numpy.ndarray"
    return isinstance(value, Tensor | TensorRef)


def _is_module(value: Any) -> bool:
    held = value.state if isinstance(value, Inert) else None
    return isinstance(held, dict) and isinstance(held.get("_parameters"), dict)


def _flatten(root: Inert, state: State, where: str) -> None:
    """Collect parameters and persistent buffers of a module and those inside, as torch does."""
    waiting: list[tuple[Inert, str, int]] = [(root, "", 0)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            _checked(state, where)
            return
        module, prefix, depth = waiting.pop()
        if depth > _MAX_NESTING:
            raise DataError("has modules nested in a circle", code="Q10", where=where)
        _collect(module, prefix, state)
        for name, inner in _table(module, "_modules").items():
            if _is_module(inner):
                waiting.append((inner, f"{prefix}{name}.", depth + 1))
    raise DataError(f"has more than {_MAX_MODULES:,} modules", code="Q10", where=where)


def _collect(module: Inert, prefix: str, state: State) -> None:
    passing = module.state.get("_non_persistent_buffers_set", ())
    passing = passing if isinstance(passing, set | frozenset | list) else ()
    for table in ("_parameters", "_buffers"):
        for name, leaf in _table(module, table).items():
            if _is_leaf(leaf) and name not in passing:
                state.tensors[f"{prefix}{name}"] = leaf
    if prefix.count(".") < 2 and "_init_kwargs" in module.state:
        config = {"class": module.kind, **_plain_dict(module.state["_init_kwargs"], 0)}
        state.config[prefix.rstrip(".") or "."] = config


def _table(module: Inert, name: str) -> dict[str, Any]:
    found = module.state.get(name)
    return found if isinstance(found, dict) else {}


def _checked(state: State, where: str) -> State:
    if len(state.tensors) > MAX_TENSORS:
        message = f"has {len(state.tensors):,} tensors; at most {MAX_TENSORS:,} are read"
        raise DataError(message, code="Q10", where=where)
    odd = next((n for n in state.tensors if len(n) > _MAX_NAME or not n.isprintable()), None)
    if odd is not None:
        message = f"has a tensor with the name {odd[:80]!r}"
        raise DataError(message, code="Q10", where=where)
    return state


def _plain_dict(value: Any, depth: int) -> dict[str, Any]:
    table = value if isinstance(value, dict) else {}
    return {str(key): _plain(inner, depth) for key, inner in list(table.items())[:_MAX_CONFIG]}


def _plain(value: Any, depth: int) -> Any:
    """A setting as JSON; what is no plain value as the name of its type."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if depth < _MAX_DEPTH and isinstance(value, dict):
        return _plain_dict(value, depth + 1)
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        return [_plain(inner, depth + 1) for inner in value[:_MAX_CONFIG]]
    return f"<{type(value).__name__}>"


def skeleton(state: State, where: str) -> dict[str, Tensor]:
    """Tensors of a state without their numbers, on the device "meta"."""
    return {name: _bare(leaf, f"{where}: {name}") for name, leaf in state.tensors.items()}


def _bare(leaf: Leaf, where: str) -> Tensor:
    if isinstance(leaf, Tensor):
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    if isinstance(leaf, TensorRef):
        return torch.empty(leaf.shape, dtype=DTYPES[leaf.dtype], device="meta")
    return _array(leaf, where).to("meta")


def _array(leaf: Inert, where: str) -> Tensor:
    try:
        # A copy of its own, in native byte order.
        array = as_array(leaf)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))
    except (TypeError, ValueError) as error:
        raise DataError(f"is no array of numbers: {error}", code="Q10", where=where) from error


def load_state(state: State, *, size: int, where: str) -> dict[str, Tensor]:
    """Read the tensors of a state; each has memory of its own.

    Args:
        state: What to read.
        size: Bytes of the file, which bounds what may come out of it.
        where: The file, for messages.

    Raises:
        DataError: Q10 if they would take far more memory than the file, or it is damaged.
    """
    total = sum(t.nbytes for t in skeleton(state, where).values())
    if total > _MAX_SHARING * size:
        message = f"its tensors would take {total:,} bytes, {_MAX_SHARING} times the file and more"
        raise DataError(message, code="Q10", where=where)
    loaded: dict[str, Tensor] = {}
    by_storage: dict[int, list[str]] = defaultdict(list)
    for name, leaf in state.tensors.items():
        if isinstance(leaf, TensorRef):
            by_storage[id(leaf.storage)].append(name)
        else:
            loaded[name] = leaf if isinstance(leaf, Tensor) else _array(leaf, f"{where}: {name}")
    for names in by_storage.values():
        loaded |= _views(state.tensors, names)
    return {name: loaded[name] for name in state.tensors}


def _views(tensors: Mapping[str, Any], names: list[str]) -> dict[str, Tensor]:
    """Tensors of one storage, which is read once."""
    storage: Storage = tensors[names[0]].storage
    # Only as many bytes as the pickle speaks of; a bytearray, since torch wants to write.
    data = bytearray(storage.read()[: storage.nbytes])
    return {name: _view(tensors[name], data) for name in names}


def _view(ref: TensorRef, data: bytearray) -> Tensor:
    dtype = DTYPES[ref.dtype]
    if not ref.count:
        return torch.empty(ref.shape, dtype=dtype)
    # Whole elements: what follows them is padding.
    usable = len(data) // dtype.itemsize
    flat = torch.frombuffer(data, dtype=dtype, count=usable)
    return flat.as_strided(ref.shape, ref.stride, ref.offset).clone(
        memory_format=torch.contiguous_format
    )
