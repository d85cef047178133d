"""Pickles of plain values and numpy arrays, read without running anything they hold."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from advdiff_core.errors import DataError, escape

__all__ = ["load_arrays"]


def _rebuild(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    """What numpy pickles before it sets an array's state: an empty array of bytes."""
    del subtype, shape, code
    return np.ndarray((0,), dtype="b")


def _codec(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        message = f"bytes in {encoding!r}"
        raise pickle.UnpicklingError(message)
    return text.encode("latin1")


def _dtype(name: str, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    """A plain number type; one that holds objects would hold pickled code."""
    del align, copy
    found: np.dtype[Any] = np.dtype(name)
    if found.hasobject or found.fields is not None:
        message = f"arrays of {name!r}"
        raise pickle.UnpicklingError(message)
    return found


#: What a pickle may name, and what stands for it: none of these runs anything else.
_KNOWN: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy.core.multiarray", "_reconstruct"): _rebuild,
    ("numpy._core.multiarray", "_reconstruct"): _rebuild,
    # It only says which class `_reconstruct` makes; the class itself would allocate anything.
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _codec,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _KNOWN.get((module, name))
        if found is None:
            message = f"names {module}.{name}"
            raise pickle.UnpicklingError(message)
        return found


def load_arrays(raw: bytes, path: Path) -> Any:
    """The value of a pickle that holds plain values and arrays of numbers.

    Args:
        raw: The pickle; strings of Python 2 come out as bytes.
        path: Its file, for messages.

    Raises:
        DataError: D12 if it names anything else, which is then not called; D02 if it is damaged.
    """
    try:
        return _Reader(io.BytesIO(raw), encoding="bytes").load()
    except pickle.UnpicklingError as cause:
        message = (
            f"is refused: {escape(cause, limit=120)}; only plain numbers are read from pickles"
        )
        raise DataError(message, code="D12", where=str(path), fix="fetch it again") from cause
    # A damaged pickle makes the reader raise whatever its next step raises.
    except Exception as cause:
        message = f"is damaged: {type(cause).__name__}: {escape(cause, limit=120)}"
        raise DataError(message, code="D02", where=str(path), fix="fetch it again") from cause
