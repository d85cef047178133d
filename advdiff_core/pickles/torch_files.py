"""The two formats of `torch.save`, read without torch: a zip file, and pickles in a row before it.

The zip file is never extracted: its entries are looked up by name, uncompressed, each with its CRC.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from attrs import define, field

from advdiff_core.errors import AdvdiffError, DataError
from advdiff_core.pickles.machine import read_pickle, refusal
from advdiff_core.pickles.objects import ITEM_SIZES, Named, Storage
from advdiff_core.pickles.rules import STORAGES

__all__ = ["LEGACY_MAGIC", "Bounded", "read_legacy", "read_zip"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_ENTRIES = 500_000
_ENCRYPTED = 0x1


class Bounded:
    """A file that is never asked for more than it has: else a huge count is allocated first.

    Args:
        file: Open for reading.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        place = file.tell()
        self._size = file.seek(0, 2)
        file.seek(place)

    def tell(self) -> int:
        """Position in bytes."""
        return self._file.tell()

    def seek(self, place: int) -> int:
        """Go to a position."""
        return self._file.seek(place)

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes."""
        rest = max(self._size - self._file.tell(), 0)
        return self._file.read(rest if count < 0 else min(count, rest))

    def readline(self) -> bytes:
        """Bytes up to the end of a line."""
        return self._file.readline()

    @property
    def rest(self) -> int:
        """Bytes not read yet."""
        return self._size - self._file.tell()


def read_zip(file: BinaryIO, *, where: str) -> Any:
    """The value in a file of `torch.save`; its storages are read when asked for, from `file`.

    Args:
        file: Open for reading; it must stay open.
        where: Its name, for messages.

    Raises:
        DataError: Q01 for names that are not read or another kind of archive, Q10 for damage.
    """
    with _damage(where):
        archive = _Archive(zipfile.ZipFile(file), where)
    return archive.value()


class _damage:  # noqa: N801 - reads as a statement.
    """Errors of a damaged archive as one line."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, AdvdiffError):
            message = f"is damaged: {type(error).__name__}: {error}"
            fix = "fetch the file again; compare its size and hash with those its authors give"
            raise DataError(message, code="Q10", where=self.where, fix=fix) from error


class _Archive:
    """An open zip file of `torch.save`."""

    def __init__(self, archive: zipfile.ZipFile, where: str) -> None:
        self.archive = archive
        self.where = where
        self.entries = self._entries(archive.infolist())
        self.root = self._root()
        self.storages: dict[str, Storage] = {}

    def value(self) -> Any:
        """What was saved."""
        order = self._read("byteorder") if f"{self.root}/byteorder" in self.entries else b"little"
        if order != b"little":
            message = f"its byte order is {order[:10]!r}; little-endian files are read"
            raise DataError(message, code="Q10", where=self.where, fix="save it again here")
        program = io.BytesIO(self._read("data.pkl"))
        return read_pickle(program, where=self.where, persistent=self._storage)

    def _entries(self, found: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """Entries by name, after all that can be wrong with a list of them."""
        entries = {info.filename: info for info in found}
        size = self.archive.fp.seek(0, 2) if self.archive.fp else 0
        odd = next((info for info in found if not _is_plain(info)), None)
        if odd is not None:
            message = f"its entry {odd.filename!r} is compressed, encrypted or leads elsewhere"
            raise DataError(message, code="Q10", where=self.where, fix="torch.save writes none so")
        if len(entries) < len(found) or len(found) > _MAX_ENTRIES:
            message = f"it has {len(found):,} entries of {len(entries):,} names"
            raise DataError(message, code="Q10", where=self.where)
        total = sum(info.file_size for info in found)
        if total > size:
            message = f"its entries are said to hold {total:,} bytes, the file has {size:,}"
            raise DataError(message, code="Q10", where=self.where)
        return entries

    def _root(self) -> str:
        """The folder all entries are in."""
        roots = [name.rpartition("/")[0] for name in self.entries if name.endswith("/data.pkl")]
        script = any("/code/" in name for name in self.entries)
        if len(roots) != 1 or script:
            kind = "a TorchScript archive" if script else "a zip file, but not one of torch.save"
            fix = "give the state dict it was made from, saved by torch.save or as safetensors"
            raise DataError(f"is {kind}", code="Q01", where=self.where, fix=fix)
        return roots[0]

    def _read(self, name: str) -> bytes:
        with _damage(self.where):
            return self.archive.read(self.entries[f"{self.root}/{name}"])

    def _storage(self, key: Any) -> Storage:
        dtype, name, count = _storage_key(key, self.where)
        if name not in self.storages:
            info = self.entries.get(f"{self.root}/data/{name}")
            wanted = count * ITEM_SIZES[dtype]
            if info is None or info.file_size < wanted:
                found = "missing" if info is None else f"of {info.file_size:,} bytes"
                message = f"storage {name!r} of {wanted:,} bytes is {found}"
                raise DataError(message, code="Q10", where=self.where)
            self.storages[name] = Storage(dtype, count, partial(self._read, f"data/{name}"))
        held = self.storages[name]
        # One storage may be seen as elements of several kinds.
        return held if held.dtype == dtype else Storage(dtype, count, held.read)


def _is_plain(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in info.filename
    stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
    return inside and stored and not info.flag_bits & _ENCRYPTED


def _storage_key(key: Any, where: str) -> tuple[str, str, int]:
    """dtype, name and number of elements out of a persistent id of torch."""
    if type(key) is not tuple or len(key) < 5 or key[0] != "storage":
        raise refusal("refers to something that is no storage", where)
    _, kind, name, _, count = key[:5]
    if not isinstance(kind, Named) or kind.path not in STORAGES:
        raise refusal("refers to a storage of a kind that is not read", where)
    if type(name) is not str or type(count) is not int or not 0 <= count < 2**50:
        raise refusal("refers to a storage by a malformed key", where)
    return STORAGES[kind.path], name, count


@define
class _Waiting:
    """Storages of a legacy file, whose place is known after all pickles only."""

    where: str
    known: dict[str, Storage] = field(factory=dict)
    places: dict[str, Callable[[], bytes]] = field(factory=dict)

    def storage(self, key: Any) -> Storage:
        """The storage for a persistent id."""
        dtype, name, count = _storage_key(key, self.where)
        if len(key) > 5 and key[5] is not None:
            raise refusal("holds views of storages, as torch before 0.4 wrote them", self.where)
        if name not in self.known:
            self.known[name] = Storage(dtype, count, partial(self._read, name))
        held = self.known[name]
        if (held.dtype, held.count) != (dtype, count):
            raise ValueError(f"storage {name!r} is described in two ways")
        return held

    def _read(self, name: str) -> bytes:
        return self.places[name]()


def read_legacy(file: BinaryIO, *, where: str) -> Any:
    """The value in a file of `torch.save` before 1.6, from its beginning.

    Args:
        file: Open for reading; it must stay open.
        where: Its name, for messages.

    Raises:
        DataError: Q01 or Q10.
    """
    source: Any = Bounded(file)
    with _damage(where):
        magic, version = (read_pickle(source, where=where) for _ in range(2))
        system = read_pickle(source, where=where)
        if magic != LEGACY_MAGIC or version != _LEGACY_VERSION:
            raise ValueError("the head of torch.save is missing")
        if not isinstance(system, Mapping) or system.get("little_endian") is not True:
            raise ValueError("its byte order is not little-endian")
        waiting = _Waiting(where)
        found = read_pickle(source, where=where, persistent=waiting.storage)
        for name in read_pickle(source, where=where):
            _place(source, waiting, name)
        if missing := set(waiting.known) - set(waiting.places):
            raise ValueError(f"{len(missing)} storages are missing")
    return found


def _place(source: Bounded, waiting: _Waiting, name: str) -> None:
    """Note where a storage begins, and go behind it."""
    if type(name) is not str:
        raise TypeError("a storage whose name is no text")
    storage = waiting.known[name]
    count = int.from_bytes(source.read(8), "little", signed=True)
    if count != storage.count or storage.nbytes > source.rest:
        raise ValueError(f"storage {name!r} has {count:,} elements instead of {storage.count:,}")
    start = source.tell()
    waiting.places[name] = partial(_read_at, source, start, storage.nbytes)
    source.seek(start + storage.nbytes)


def _read_at(source: Bounded, start: int, count: int) -> bytes:
    source.seek(start)
    return source.read(count)
