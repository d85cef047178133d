"""Arrays of uncompressed `.npz` files, mapped into memory instead of read."""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.lib import format as npy

from advdiff_core.errors import DataError

__all__ = ["Member", "members"]

#: Local header of a member: signature, then fields of which the last two are lengths.
_LOCAL = struct.Struct("<4s22xHH")


@frozen(kw_only=True)
class Member:
    """Where an array lies in a file.

    Attributes:
        path: The file.
        dtype: Type of its numbers.
        shape: Its shape.
        offset: First byte of its numbers.
        size: Bytes of the whole file.
    """

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    size: int

    def map(self) -> np.ndarray:
        """The array as a read-only map: a row is read from the disk when it is asked for."""
        if not math.prod(self.shape):
            return np.empty(self.shape, self.dtype)
        with self.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Rows are read in random order: reading ahead, by megabytes, would be in vain each time.
        mapped.madvise(mmap.MADV_RANDOM)
        flat = np.frombuffer(mapped, self.dtype, math.prod(self.shape), self.offset)
        return flat.reshape(self.shape)

    def blocks(self, rows: int) -> Any:
        """The array in parts of at most `rows` rows, each read into memory of its own."""
        width = math.prod(self.shape[1:])
        for first in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - first)
            start = self.offset + first * width * self.dtype.itemsize
            found = np.fromfile(self.path, self.dtype, count=count * width, offset=start)
            yield first, found.reshape(-1, *self.shape[1:])


def members(path: Path) -> dict[str, Member]:
    """The arrays of a file by name.

    Raises:
        DataError: D01 if the file is missing or unreadable; D02 if it is damaged or compressed; D12
            if an array holds objects.
    """
    try:
        return dict(_members(path))
    except DataError:
        raise
    except FileNotFoundError as cause:
        raise DataError("there is no such file", code="D01", where=str(path)) from cause
    except PermissionError as cause:
        raise DataError("cannot be read: no permission", code="D01", where=str(path)) from cause
    except (OSError, EOFError, ValueError, struct.error, zipfile.BadZipFile) as cause:
        text = f"is damaged or cut short: {type(cause).__name__}: {cause}"
        raise DataError(text, code="D02", where=str(path), fix="fetch or make it again") from cause


def _members(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".npy"):
                yield info.filename.removesuffix(".npy"), _member(path, file, info, size)


def _member(path: Path, file: Any, info: zipfile.ZipInfo, size: int) -> Member:
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED:
        fix = "write it with numpy.savez instead of numpy.savez_compressed"
        message = f"{name} is compressed and cannot be mapped into memory"
        raise DataError(message, code="D02", where=str(path), fix=fix)
    file.seek(info.header_offset)
    signature, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    if signature != b"PK\x03\x04":
        message = f"no header of {name} where the archive says it is"
        raise ValueError(message)
    start = info.header_offset + _LOCAL.size + name_length + extra_length
    file.seek(start)
    shape, fortran, dtype = _npy_header(file)
    if dtype.hasobject:
        message = f"{name} holds Python objects, which are pickled code"
        raise DataError(message, code="D12", where=str(path), fix="save plain numbers")
    offset, wanted = file.tell(), math.prod(shape) * dtype.itemsize
    if fortran or offset - start + wanted != info.file_size or offset + wanted > size:
        order = ", column by column" if fortran else ""
        message = f"{name} says {list(shape)} of {dtype}{order}, and has {info.file_size:,} bytes"
        raise ValueError(message)
    return Member(path=path, dtype=dtype, shape=shape, offset=offset, size=size)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), dtype
