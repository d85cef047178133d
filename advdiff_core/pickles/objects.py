"""What a file of another program becomes: inert values. Free of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from attrs import define, field, frozen

__all__ = ["ITEM_SIZES", "Inert", "Named", "Storage", "TensorRef"]

#: Bytes of an element by the names safetensors gives data types.
ITEM_SIZES = {
    "BF16": 2, "BOOL": 1, "C64": 8, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1, "F8_E5M2FNUZ": 1, "I16": 2, "I32": 4, "I64": 8, "I8": 1, "U16": 2, "U32": 4,
    "U64": 8, "U8": 1,
}  # fmt: skip
_MAX_DIMS = 16
#: Elements a tensor would have without its empty axes: more than torch can count.
_MAX_COUNT = 2**62


@frozen
class Named:
    """A name that a pickle holds, such as "torch._utils._rebuild_tensor_v2"; never looked up."""

    path: str


@define(eq=False)
class Inert:
    """An object of another program: the name of its class and what it was made of.

    Attributes:
        kind: Class, as the file calls it.
        args: Arguments of its constructor; nothing was called with them.
        state: Its attributes, or whatever else it saved.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: Any = None


@define(eq=False)
class Storage:
    """Numbers in a file, read when asked for.

    Attributes:
        dtype: Data type of an element, as safetensors names it; "U8" for untyped bytes.
        count: Number of elements.
        read: Gives the bytes.
    """

    dtype: str
    count: int
    read: Callable[[], bytes] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * ITEM_SIZES[self.dtype]


@frozen(eq=False)
class TensorRef:
    """A tensor in a file: a strided view of a storage.

    Attributes:
        storage: Its numbers.
        offset: First element.
        shape: Shape.
        stride: Elements from one entry to the next, by axis.
        dtype: Data type, as safetensors names it.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @classmethod
    def checked(
        cls,
        storage: Any,
        offset: Any,
        shape: Sequence[Any],
        stride: Sequence[Any],
        dtype: str | None = None,
    ) -> TensorRef:
        """A tensor whose every element lies in its storage, no element used twice over.

        Raises:
            ValueError: If one lies outside, or the tensor is larger than the storage.
        """
        if not isinstance(storage, Storage):
            raise ValueError(f"a tensor of a {type(storage).__name__}")  # noqa: TRY004
        made = cls(storage, offset, tuple(shape), tuple(stride), dtype or storage.dtype)
        numbers = (offset, *made.shape, *made.stride)
        if not all(type(n) is int and 0 <= n <= sys.maxsize for n in numbers):
            raise ValueError("a tensor with an impossible shape")
        if len(made.shape) != len(made.stride) or len(made.shape) > _MAX_DIMS:
            raise ValueError(f"a tensor of {len(made.shape)} axes and {len(made.stride)} strides")
        if prod(max(n, 1) for n in made.shape) >= _MAX_COUNT:
            raise ValueError("a tensor with an impossible shape")
        room = storage.nbytes // ITEM_SIZES[made.dtype]
        if made.count > room or (made.count and made.last >= room):
            raise ValueError(f"a tensor {list(made.shape)} in a storage of {room} elements")
        return made

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def last(self) -> int:
        """Position of the last element in the storage."""
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((n - 1) * step for n, step in steps)
