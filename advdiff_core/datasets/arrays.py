"""Arrays in `.npz` and `.safetensors` files, read without running anything they hold."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError, safe_open
from torch import Tensor

from advdiff_core.errors import DataError

__all__ = ["array_names", "read_array"]

#: Files that unpickle, and so run, what they hold.
_PICKLES = frozenset((".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".joblib"))


def array_names(path: Path) -> tuple[str, ...]:
    """Names of the arrays in a file, sorted.

    Raises:
        DataError: D01 if the file is missing, unreadable or of another kind; D02 if it is damaged;
            D12 if its kind can hold code.
    """
    with _named_faults(path):
        if _is_npz(path):
            with zipfile.ZipFile(path) as archive:
                return tuple(sorted(n[:-4] for n in archive.namelist() if n.endswith(".npy")))
        with safe_open(path, framework="pt") as file:
            return tuple(sorted(file.keys()))


def read_array(path: Path, name: str) -> Tensor:
    """One array of a file: bool, uint8, int64 or float32, in memory of its own.

    Raises:
        DataError: As `array_names`; D12 for object arrays, D03 for numbers of other kinds.
    """
    with _named_faults(path):
        if _is_npz(path):
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
                size = archive.getinfo(f"{name}.npy").file_size
                array = _read_npy(member, size, path, name)
            return _plain(torch.from_numpy(array), path, name)
        with safe_open(path, framework="pt") as file:
            # A clone: the tensor itself is a view of the file, and changes with it.
            return _plain(file.get_tensor(name).clone(), path, name)


def _is_npz(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        message = f"{suffix} files can run code when they are read"
        fix = "save plain arrays as .npz or .safetensors"
        raise DataError(message, code="D12", where=str(path), fix=fix)
    if suffix not in (".npz", ".safetensors"):
        message = f"found a file of kind {suffix or '(none)'}, wanted .npz or .safetensors"
        raise DataError(message, code="D01", where=str(path))
    if not path.is_file():
        message = "there is no such file" if not path.exists() else "is not a regular file"
        raise DataError(message, code="D01", where=str(path))
    return suffix == ".npz"


@contextmanager
def _named_faults(path: Path) -> Iterator[None]:
    """Turn what the readers raise on damaged files into a `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except PermissionError as cause:
        raise DataError("cannot be read: no permission", code="D01", where=str(path)) from cause
    except (OSError, EOFError, KeyError, ValueError, MemoryError) as cause:
        raise _damaged(path, cause) from cause
    except (SafetensorError, zipfile.BadZipFile, zlib.error, NotImplementedError) as cause:
        raise _damaged(path, cause) from cause


def _damaged(path: Path, cause: BaseException | str) -> DataError:
    text = cause if isinstance(cause, str) else f"{type(cause).__name__}: {cause}"
    return DataError(f"is damaged: {text}", code="D02", where=str(path), fix="make it again")


def _read_npy(member: IO[bytes], size: int, path: Path, name: str) -> np.ndarray:
    """The array of a `.npy` stream whose header fits its length and holds no objects."""
    version = npy.read_magic(member)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(member)
    if dtype.hasobject:
        message = f"array {name!r} holds Python objects, which are pickled code"
        fix = "save plain numbers (numpy.savez of numeric arrays)"
        raise DataError(message, code="D12", where=str(path), fix=fix)
    wanted = math.prod(shape) * dtype.itemsize
    if size - member.tell() != wanted:
        raise _damaged(path, f"array {name!r} has {size - member.tell()} bytes, not {wanted}")
    # Reading to the end makes zipfile compare the checksum.
    data = bytearray(member.read())
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return _known(np.ascontiguousarray(array), path, name)


def _known(array: np.ndarray, path: Path, name: str) -> np.ndarray:
    """The array in one of the types that torch knows."""
    if array.dtype.kind == "f":
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        return array.astype(np.int64, copy=False)
    if array.dtype.kind in "bu":
        return array
    message = f"array {name!r} holds {array.dtype}, wanted numbers"
    raise DataError(message, code="D03", where=str(path))


def _plain(tensor: Tensor, path: Path, name: str) -> Tensor:
    if tensor.dtype in (torch.bool, torch.uint8):
        return tensor
    if tensor.dtype.is_floating_point:
        return tensor.float()
    if tensor.dtype.is_complex:
        message = f"array {name!r} holds {tensor.dtype}, wanted numbers"
        raise DataError(message, code="D03", where=str(path))
    return tensor.long()
