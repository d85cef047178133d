"""Nested state as one flat dict of named tensors plus JSON, and back, bit for bit.

A state is made of dict (with str keys), list, Tensor, bool, int, float, str and None. In the JSON a
tensor is `{"$tensor": name}` (with "stride" if it is not laid out row by row), a float that is not
finite `{"$float": "nan"}`, an integer beyond 64 bits `{"$int": "..."}`; a key that begins with `$`
gets one more. Names are the path joined by dots. Tensors that are one and the same view are stored
once and come back as one; tensors that merely overlap come back separate. All NaN floats come back
as the one of `math.nan`; NaNs in tensors keep their bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn

from advdiff_core.engine.strict_json import MAX_DEPTH
from advdiff_core.engine.tensor_file import DTYPES
from advdiff_core.errors import DataError

__all__ = ["Encoder", "decode", "join"]

_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)
_STORED = frozenset(DTYPES.values())
_MAX_BITS = 4096
_INT = re.compile(r"-?[0-9]{1,1300}")


def join(path: str, key: object) -> str:
    """The name of `key` inside `path`."""
    return f"{path}.{key}" if path else str(key)


@frozen
class Encoder:
    """Turns states into JSON and collects their tensors; several states may share one.

    Attributes:
        tensors: The tensors met, by name; not copied.
    """

    tensors: dict[str, Tensor] = field(factory=dict)
    _names: dict[tuple[Any, ...], str] = field(factory=dict, init=False)

    def encode(self, state: Any, path: str = "") -> Any:
        """The JSON of `state`.

        Args:
            state: Nested state.
            path: Name of the place it has, used in tensor names and messages.

        Raises:
            DataError: S12, naming the path: a type, dtype, key or depth that cannot be stored.
        """
        return self._encode(state, path, MAX_DEPTH - 8)

    def _encode(self, value: Any, path: str, depth: int) -> Any:
        if depth < 0:
            raise _refused(path, "it is nested too deep")
        if isinstance(value, Tensor):
            return self._tensor(value, path)
        if type(value) is dict:
            return {
                _key(key, path): self._encode(item, join(path, key), depth - 1)
                for key, item in value.items()
            }
        if type(value) is list:
            return [self._encode(item, join(path, i), depth - 1) for i, item in enumerate(value)]
        return _scalar(value, path)

    def _tensor(self, tensor: Tensor, path: str) -> dict[str, Any]:
        _check_tensor(tensor, path)
        stride = list(tensor.stride())
        view = _view_key(tensor)
        name = self._names.get(view) if tensor.numel() else None
        if name is None:
            name = path
            while name in self.tensors or name in {"", "__metadata__"}:
                name += "~"
            self.tensors[name] = tensor
            self._names[view] = name
        plain = stride == _row_major(tensor.shape) or not _is_dense(stride, tensor.shape)
        return {"$tensor": name} if plain else {"$tensor": name, "stride": stride}


def decode(tree: Any, tensors: Mapping[str, Tensor], *, where: str) -> Any:
    """The state that `Encoder.encode` was given.

    Args:
        tree: Its JSON.
        tensors: The stored tensors, row by row.
        where: File, for messages.

    Raises:
        DataError: S12 for a tensor that is missing, S15 for an unknown tag.
    """
    return _Decoder(tensors, where).decode(tree, "")


@frozen
class _Decoder:
    tensors: Mapping[str, Tensor]
    where: str
    _made: dict[tuple[Any, ...], Tensor] = field(factory=dict, init=False)

    def decode(self, tree: Any, path: str) -> Any:
        if isinstance(tree, list):
            return [self.decode(item, join(path, i)) for i, item in enumerate(tree)]
        if not isinstance(tree, dict):
            return tree
        tag = next((key for key in tree if key[:1] == "$" and key[:2] != "$$"), None)
        if tag is not None:
            return self._tagged(tag, tree, path)
        return {
            key.removeprefix("$"): self.decode(item, join(path, key)) for key, item in tree.items()
        }

    def _tagged(self, tag: str, tree: dict[str, Any], path: str) -> Any:
        value = tree[tag]
        try:
            if tag == "$tensor":
                return self._tensor(value, tuple(tree.get("stride", ())), path)
            if tag == "$float" and value in {"nan", "inf", "-inf"}:
                return float(value)
            if tag == "$int" and _INT.fullmatch(value):
                return int(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"is malformed: {error}", code="S15", where=self._at(path)) from error
        raise DataError(f"has an unknown tag {tag!r}", code="S15", where=self._at(path))

    def _tensor(self, name: str, stride: tuple[int, ...], path: str) -> Tensor:
        if name not in self.tensors:
            message = f"tensor {name!r} is missing"
            raise DataError(message, code="S12", where=self._at(path))
        made = self._made.get((name, stride))
        if made is None:
            made = _with_stride(self.tensors[name], stride)
            self._made[name, stride] = made
        return made

    def _at(self, path: str) -> str:
        return f"{self.where}: {path}"


def _scalar(value: Any, path: str) -> Any:
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        if value.bit_length() > _MAX_BITS:
            raise _refused(path, f"the integer has more than {_MAX_BITS} bits")
        return value if -(2**63) <= value < 2**64 else {"$int": str(value)}
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if type(value) is str:
        return _text(value, path)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise _refused(path, f"a {kind} is none of dict, list, tensor, int, float, bool, str, None")


def _text(value: str, path: str) -> str:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _refused(path, "the text holds a lone surrogate") from None
    return value


def _key(key: object, path: str) -> str:
    if type(key) is not str:
        raise _refused(path, f"the key {key!r} is not a str")
    _text(key, path)
    return f"${key}" if key.startswith("$") else key


def _check_tensor(tensor: Tensor, path: str) -> None:
    if type(tensor) not in _PLAIN_TENSORS:
        raise _refused(path, f"a {type(tensor).__qualname__} is not a plain tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise _refused(path, "only dense tensors with data can be stored")
    if tensor.dtype not in _STORED:
        raise _refused(path, f"safetensors has no {tensor.dtype}")


def _refused(path: str, why: str) -> DataError:
    return DataError(
        f"cannot be saved: {why}", code="S12", where=path, fix="convert it before it is saved"
    )


def _view_key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same view of the same memory."""
    flags = (tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), flags)


def _row_major(shape: torch.Size) -> list[int]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _is_dense(stride: Sequence[int], shape: Sequence[int]) -> bool:
    """True if the elements fill their memory without holes or overlap, in whatever order."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1 and step != expected:
            return False
        expected *= size
    return expected > 0 and all(step >= 0 for step in stride)


def _with_stride(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The same values laid out with `stride`, which must describe a dense layout."""
    if not stride:
        return tensor
    if len(stride) != tensor.dim() or not _is_dense(stride, tensor.shape):
        raise ValueError(f"stride {list(stride)} does not fit shape {list(tensor.shape)}")
    laid = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype)
    return laid.copy_(tensor)
