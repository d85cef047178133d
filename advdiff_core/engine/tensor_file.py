"""safetensors files: written tensor by tensor without a copy of the whole, read from bytes.

Own writer because the library's makes two copies of everything in memory, never syncs, and sets
mode 0600; the format is a length, a JSON header and the data. Reading is left to the library, after
checks.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from advdiff_core.engine import strict_json
from advdiff_core.engine.fsio import Chunk
from advdiff_core.engine.manifest import TensorEntry
from advdiff_core.errors import DataError

__all__ = [
    "DTYPES",
    "MAX_HEADER",
    "MAX_TENSORS",
    "chunks",
    "describe",
    "load_tensors",
    "total_size",
]

#: Caps on a header. A file holds the weights, a few averages and two or three tensors of optimizer
#: state for each weight, at about 150 bytes an entry: a model of 1,000 tensors already fills the
#: 1 MB that would be enough for weights alone. 100,000 tensors with long names fit 25 MB.
MAX_HEADER = 25_000_000
MAX_TENSORS = 100_000

#: Data types by their name in the file, those that every safetensors since 0.8 reads back.
DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 64 * 2**20


def describe(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Stored dtype and shape by name; the dtypes must be among `DTYPES`."""
    return {name: TensorEntry(_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}


def total_size(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the file that `chunks` makes."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def chunks(tensors: Mapping[str, Tensor]) -> Iterator[Chunk]:
    """The bytes of a safetensors file with these tensors.

    Tensors on a device, or not contiguous, are copied one at a time.

    Args:
        tensors: Dense tensors by name.

    Yields:
        Header, then the data in pieces of at most 64 MiB.
    """
    yield _header(tensors)
    for name in _order(tensors):
        tensor = tensors[name]
        if tensor.numel():
            plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
            # Not reshape(-1): that keeps the odd stride a single element may have.
            flat = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)
            data = memoryview(flat.numpy())  # type: ignore[arg-type]
            for start in range(0, len(data), _PIECE):
                yield data[start : start + _PIECE]


def load_tensors(data: bytes, *, where: str) -> dict[str, Tensor]:
    """Read a safetensors file from its bytes; each tensor has memory of its own.

    Nothing in such a file can run code. Header and offsets are checked before any tensor is made.

    Args:
        data: The whole file.
        where: Its path, for messages.

    Raises:
        DataError: Q01 if it is another kind of file, Q10 if it is malformed or above the caps.
    """
    check_header(data, where=where)
    try:
        return dict(safetensors.torch.load(data))
    except Exception as error:
        message = f"is not a readable safetensors file: {error}"
        raise DataError(message, code="Q10", where=where) from error


def check_header(data: bytes, *, where: str) -> dict[str, TensorEntry]:
    """Read the header of a safetensors file: dtype and shape by name.

    Raises:
        DataError: Q01 or Q10, naming the tensor where one is at fault.
    """
    header = _parse_header(data, where)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        message = f"has {len(header):,} tensors; at most {MAX_TENSORS:,} are read"
        raise DataError(message, code="Q10", where=where)
    body = len(data) - 8 - int.from_bytes(data[:8], "little")
    return {name: _entry(entry, body, f"{where}: {name}") for name, entry in header.items()}


def _parse_header(data: bytes, where: str) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 10 or size > len(data) - 8 or data[8:9] != b"{":
        raise DataError(
            "is not a safetensors file",
            code="Q01",
            where=where,
            fix="write it with safetensors.torch.save_file; pickled files are never opened",
        )
    if size > MAX_HEADER:
        message = f"has a header of {size:,} bytes; at most {MAX_HEADER:,} are read"
        raise DataError(message, code="Q10", where=where)
    header: dict[str, Any] = strict_json.loads(data[8 : 8 + size], where=where)
    return header


def _entry(raw: Any, body: int, where: str) -> TensorEntry:
    """Check one header entry against the size of the data."""
    try:
        dtype, shape, (start, end) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
        sane = dtype in DTYPES and all(type(n) is int and n >= 0 for n in (*shape, start, end))
        fits = sane and end <= body and end - start == prod(shape) * DTYPES[dtype].itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(repr(error), where) from error
    if not fits:
        raise _malformed(f"{dtype} {list(shape)} at bytes {start} to {end} of {body}", where)
    return TensorEntry(dtype, shape)


def _malformed(found: str, where: str) -> DataError:
    return DataError(f"malformed tensor entry: {found}", code="Q10", where=where)


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names in the order of the data: widest dtype first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {}
    start = 0
    for name in _order(tensors):
        tensor = tensors[name]
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
