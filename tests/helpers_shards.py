"""Shards of generated images that take no room on the disk."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

__all__ = ["sparse_shard"]


def sparse_shard(path: Path, count: int, shape: tuple[int, ...] = (32, 32, 3)) -> None:
    """A shard of `count` black images of class 0, as `numpy.savez` lays it out, of holes.

    Checksums are left out: nothing that maps a file reads all of it.
    """
    members, central = [], b""
    for name, dims, kind in (("image", (count, *shape), "|u1"), ("label", (count,), "<i8")):
        text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {dims}, }}"
        text += " " * (-(len(text) + 11) % 64) + "\n"
        header = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
        members.append((f"{name}.npy".encode(), header, int(np.prod(dims)) * int(kind[2])))
    with path.open("wb") as file:
        for name, header, size in members:
            start, whole = file.tell(), len(header) + size
            fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, whole, whole, len(name), 0)
            file.write(b"PK\x03\x04" + fields + name + header)
            file.seek(size, 1)
            central += (
                b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, whole,
                whole, len(name), 0, 0, 0, 0, 0, start) + name
            )  # fmt: skip
        end = file.tell()
        file.write(central)
        file.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 2, 2, len(central), end, 0))
