"""Which of the formats a file has, and what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from attrs import field, frozen

from advdiff_core.engine import strict_json
from advdiff_core.engine.safe_read import open_regular, read_bytes
from advdiff_core.engine.tensor_file import load_tensors
from advdiff_core.errors import DataError
from advdiff_core.pickles.machine import read_pickle
from advdiff_core.pickles.torch_files import (
    LEGACY_MAGIC,
    Bounded,
    read_legacy,
    read_zip,
)

__all__ = ["MAX_FILE", "Source", "open_source"]

#: Longest file read: the largest public diffusion models take 50 GB.
MAX_FILE = 2**38
_MAX_INDEX = 16 * 2**20
_ZIP = b"PK\x03\x04"
#: First bytes of pickles: protocol 2 and later, or what protocols 0 and 1 begin a container with.
_PICKLE = (b"\x80", b"(", b"c", b"}", b"]")
_WRONG = {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "a gzip file", b"BZh": "a bzip2 file"}
_READ = "safetensors (or its .index.json), torch.save files and pickles are read"


@frozen(kw_only=True)
class Source:
    """An open checkpoint of another program.

    Attributes:
        path: The file.
        format: What it is, for people.
        sha256: SHA-256 of the file.
        tree: What it holds: dicts, tensors, inert objects.
        files: SHA-256 of the other files it refers to, by name.
    """

    path: Path
    format: str
    sha256: str
    tree: Any = field(repr=False)
    files: dict[str, str] = field(factory=dict)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Read what a file holds; the tensors of pickles are read when asked for, inside the block.

    Raises:
        DataError: S02 if it cannot be read, Q01 for a format or name that is not read, Q10 for
            damage.
    """
    if path.is_dir():
        fix = "give the file in it that holds the weights"
        raise DataError("is a folder, wanted a file", code="S02", where=str(path), fix=fix)
    with open_regular(path, limit=MAX_FILE) as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        yield _read(path, file, sha256)


def _read(path: Path, file: BinaryIO, sha256: str) -> Source:
    head = file.read(512)
    file.seek(0)
    where = str(path)
    if head.startswith(_ZIP):
        tree = read_zip(file, where=where)
        return Source(path=path, format="torch zip", sha256=sha256, tree=tree)
    if head[8:9] == b"{":
        return _safetensors(path, sha256)
    if head.lstrip()[:1] == b"{":
        return _sharded(path, sha256)
    if head.startswith(_PICKLE) and head[257:262] != b"ustar":
        return _pickled(path, file, sha256)
    known = next((name for start, name in _WRONG.items() if head.startswith(start)), None)
    found = known or ("a tar file" if head[257:262] == b"ustar" else "of no known format")
    raise DataError(f"is {found}", code="Q01", where=where, fix=_READ)


def _safetensors(path: Path, sha256: str) -> Source:
    data = read_bytes(path, limit=MAX_FILE)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise DataError("changed while it was read", code="S14", where=str(path), fix="try again")
    tree = load_tensors(data, where=str(path))
    return Source(path=path, format="safetensors", sha256=found, tree=tree)


def _sharded(path: Path, sha256: str) -> Source:
    """The tensors of all the files that an index of safetensors names."""
    where = str(path)
    raw = strict_json.loads(read_bytes(path, limit=_MAX_INDEX), where=where)
    names = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(names, dict) or not all(_is_shard(name) for name in names.values()):
        message = "is not an index of safetensors: wanted weight_map, names of files beside it"
        raise DataError(message, code="Q01", where=where, fix=_READ)
    tree: dict[str, Any] = {}
    files: dict[str, str] = {}
    for shard in sorted(set(names.values())):
        data = read_bytes(path.parent / shard, limit=MAX_FILE)
        files[shard] = hashlib.sha256(data).hexdigest()
        tensors = load_tensors(data, where=str(path.parent / shard))
        wanted = {name for name, file in names.items() if file == shard}
        if wanted != set(tensors):
            odd = sorted(wanted ^ set(tensors))[0]
            message = f"its tensors are not those of {path.name}: {odd} is in one of them alone"
            raise DataError(message, code="S12", where=str(path.parent / shard))
        tree |= tensors
    return Source(path=path, format="sharded safetensors", sha256=sha256, tree=tree, files=files)


def _is_shard(name: Any) -> bool:
    """A plain file name: an index cannot lead out of its folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _pickled(path: Path, file: BinaryIO, sha256: str) -> Source:
    bounded: Any = Bounded(file)
    first = read_pickle(bounded, where=str(path))
    if type(first) is int and first == LEGACY_MAGIC:
        file.seek(0)
        tree = read_legacy(file, where=str(path))
        return Source(path=path, format="torch legacy", sha256=sha256, tree=tree)
    if bounded.rest:
        message = f"has {bounded.rest:,} bytes behind the end of its pickle"
        raise DataError(message, code="Q10", where=str(path), fix="fetch the file again")
    return Source(path=path, format="pickle", sha256=sha256, tree=first)
