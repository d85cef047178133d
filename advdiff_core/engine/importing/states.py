"""The sets of weights in what a file holds, and their tensors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from attrs import define, field
from torch import Tensor

from advdiff_core.engine.tensor_file import DTYPES, MAX_TENSORS
from advdiff_core.errors import DataError, escape
from advdiff_core.pickles.objects import Inert, Storage, TensorRef
from advdiff_core.pickles.rules import as_array

__all__ = ["State", "find_states", "load_state", "skeleton"]

Leaf: TypeAlias = Tensor | TensorRef | Inert

_TABLES = ("_parameters", "_buffers", "_modules")
_MAX_DEPTH = 4
_MAX_MODULES = 200_000
_MAX_NESTING = 64
_MAX_NAME = 512
#: Bytes of all tensors together, as a multiple of the file: views may share a storage.
_MAX_SHARING = 8
#: Entries of dicts looked at: what is shared is met again and again.
_MAX_ENTRIES = 1_000_000
#: Settings kept of a file, and letters of one.
_MAX_CONFIG = 20_000
_MAX_TEXT = 400
_MAX_INT_BITS = 63


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
    return list(_walk(tree, (), _Budget(where, "entries", _MAX_ENTRIES)))


@define
class _Budget:
    """How much of something a file may hold."""

    where: str
    what: str
    left: int

    def spend(self, count: int) -> None:
        """Take `count` off.

        Raises:
            DataError: Q10 if there is not so much left.
        """
        self.left -= count
        if self.left < 0:
            message = f"has too many {self.what}, or the same ones in too many places"
            raise DataError(message, code="Q10", where=self.where)


def _walk(node: Any, path: tuple[str, ...], budget: _Budget) -> Iterator[State]:
    if _is_module(node):
        state = State(".".join(path), {})
        _flatten(node, state, budget)
        if state.tensors:
            yield state
    elif isinstance(node, dict) and len(path) < _MAX_DEPTH:
        budget.spend(len(node))
        tensors = {k: v for k, v in node.items() if isinstance(k, str) and _is_leaf(v)}
        if tensors:
            yield _checked(State(".".join(path), tensors), budget.where)
        for key, value in node.items():
            if isinstance(key, str) and _is_name(key):
                yield from _walk(value, (*path, key), budget)


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and text.isprintable()


def _is_leaf(value: Any) -> bool:
    if isinstance(value, Inert):
        return value.kind == "numpy.ndarray"
    return isinstance(value, Tensor | TensorRef)


def _is_module(value: Any) -> bool:
    held = value.state if isinstance(value, Inert) else None
    return isinstance(held, dict) and isinstance(held.get("_parameters"), dict)


def _flatten(root: Inert, state: State, budget: _Budget) -> None:
    """Collect parameters and persistent buffers of a module and those inside, as torch does."""
    where, settings = budget.where, _Budget(budget.where, "settings", _MAX_CONFIG)
    waiting: list[tuple[Inert, str, int]] = [(root, "", 0)]
    for _ in range(_MAX_MODULES):
        if not waiting:
            _checked(state, where)
            return
        module, prefix, depth = waiting.pop()
        if depth > _MAX_NESTING:
            raise DataError("has modules nested in a circle", code="Q10", where=where)
        budget.spend(sum(len(_table(module, name)) for name in _TABLES))
        _collect(module, prefix, state, settings)
        for name, inner in _table(module, "_modules").items():
            if _is_module(inner):
                waiting.append((inner, f"{prefix}{name}.", depth + 1))
    raise DataError(f"has more than {_MAX_MODULES:,} modules", code="Q10", where=where)


def _collect(module: Inert, prefix: str, state: State, budget: _Budget) -> None:
    found = module.state.get("_non_persistent_buffers_set", ())
    listed = found if isinstance(found, set | frozenset | list) else ()
    passing = {name for name in listed if isinstance(name, str)}
    for table in ("_parameters", "_buffers"):
        for name, leaf in _table(module, table).items():
            if isinstance(name, str) and _is_leaf(leaf) and name not in passing:
                state.tensors[f"{prefix}{name}"] = leaf
    if prefix.count(".") < 2 and "_init_kwargs" in module.state:
        settings = _plain_dict(module.state["_init_kwargs"], 0, budget)
        config = {"class": escape(module.kind, limit=_MAX_TEXT), **settings}
        state.config[prefix.rstrip(".") or "."] = config


def _table(module: Inert, name: str) -> dict[str, Any]:
    found = module.state.get(name)
    return found if isinstance(found, dict) else {}


def _checked(state: State, where: str) -> State:
    if len(state.tensors) > MAX_TENSORS:
        message = f"has {len(state.tensors):,} tensors; at most {MAX_TENSORS:,} are read"
        raise DataError(message, code="Q10", where=where)
    odd = next((name for name in state.tensors if not _is_name(name)), None)
    if odd is not None:
        message = f"has a tensor with the name {odd[:80]!r}"
        raise DataError(message, code="Q10", where=where)
    return state


def _plain_dict(value: Any, depth: int, budget: _Budget) -> dict[str, Any]:
    table = value if isinstance(value, dict) else {}
    budget.spend(len(table))
    return {
        escape(key, limit=_MAX_TEXT): _plain(inner, depth, budget)
        for key, inner in table.items()
        if isinstance(key, str)
    }


def _plain(value: Any, depth: int, budget: _Budget) -> Any:
    """A setting as JSON; what is no plain value as the name of its type."""
    if isinstance(value, str):
        return escape(value, limit=_MAX_TEXT)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() <= _MAX_INT_BITS:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth < _MAX_DEPTH and isinstance(value, dict):
        return _plain_dict(value, depth + 1, budget)
    if depth < _MAX_DEPTH and isinstance(value, list | tuple):
        budget.spend(len(value))
        return [_plain(inner, depth + 1, budget) for inner in value]
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
    except Exception as error:
        # Sizes of any kind come from the file, and NumPy has an exception for each.
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
