"""LSUN scenes, in the database they are published in or exported to a folder."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from advdiff_core.errors import DataError, escape
from advdiff_core.settings import setting, settings
from advdiff_datasets.encoded import EncodedImages, ImageSettings, Listing
from advdiff_datasets.folders import digest_of, pictures, read_file
from advdiff_datasets.packed import fault

__all__ = ["LSUN"]

#: Entries whose contents enter the fingerprint.
SAMPLED = 64


class LSUN(EncodedImages):
    """Scenes of LSUN, one category a data set, from its LMDB or a folder (Yu et al. 2015).

    `path` is the unpacked database itself (`bedroom_train_lmdb`, with `data.mdb` in it) or a folder
    of pictures. No labels. Order: by key, or by name.
    """

    @settings
    class Settings(ImageSettings):
        """Keys of `use = "lsun"`."""

        path: Path = setting(help="folder with data.mdb, or with pictures")
        first: int = setting(0, help="take the first so many; 0: all", ge=0, unit="images")

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        path = self.settings.path
        self._keys: list[bytes] = []
        self._files: list[Path] = []
        self._lock = threading.Lock()
        if (path / "data.mdb").is_file():
            self._database = _opened(path)
            self._keys = self._listed()
        else:
            self._files = self._cut(pictures(path)) if path.is_dir() else []
        count = len(self._keys) + len(self._files)
        if not count:
            message = "holds neither data.mdb nor PNG, JPEG or WebP files"
            fix = "unpack <category>_<split>_lmdb.zip there"
            raise fault(path, message, code="D01", fix=fix)
        return Listing(count)

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        if self._files:
            return read_file(self._files[index]), str(self._files[index])
        key = self._keys[index]
        where = f"{self.settings.path}: entry {escape(key.decode('latin1'), limit=60)}"
        with self._lock, _faults(where), self._database.begin() as reader:
            raw = reader.get(key)
        if raw is None:
            raise DataError("is gone since the database was listed", code="D02", where=where)
        return bytes(raw), where

    def fingerprint(self) -> str:
        """Digest of all keys or names and of the contents of 64 entries."""
        if self._files:
            return digest_of(self._files, self.settings.path, None)
        digest = hashlib.sha256(b"\0".join(self._keys))
        for index in range(0, len(self._keys), max(1, len(self._keys) // SAMPLED)):
            digest.update(self.encoded(index)[0])
        return digest.hexdigest()

    def _cut(self, found: list[Any]) -> list[Any]:
        return found[: self.settings.first or None]

    def _listed(self) -> list[bytes]:
        wanted = self.settings.first or None
        with _faults(str(self.settings.path)), self._database.begin() as reader:
            keys = reader.cursor().iternext(keys=True, values=False)
            return [bytes(key) for _, key in zip(range(wanted or 2**62), keys, strict=False)]


def _opened(path: Path) -> Any:
    try:
        import lmdb
    except ImportError as cause:
        fix = 'pip install "advdiff-datasets[lmdb]", or export the pictures to a folder'
        raise fault(path, "reading LMDB needs the package lmdb", code="D01", fix=fix) from cause
    del lmdb
    with _faults(str(path)):
        return _environment(path.resolve())


@functools.cache
def _environment(path: Path) -> Any:
    """The database, open for the life of the process: lmdb refuses to open one twice."""
    import lmdb

    # Without locks and read-ahead: many readers, no writer, and rows in random order.
    return lmdb.open(str(path), readonly=True, lock=False, readahead=False, max_readers=1)


@contextmanager
def _faults(where: str) -> Iterator[None]:
    """Turn what lmdb raises into an error that names the place."""
    try:
        yield
    except Exception as cause:
        # The package may be missing, so its errors cannot be named here.
        if not type(cause).__module__.startswith("lmdb"):
            raise
        message = f"is damaged: {type(cause).__name__}: {cause}"
        raise DataError(message, code="D02", where=where, fix="fetch it again") from cause
