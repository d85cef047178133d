"""Data sets of the Hugging Face hub, from its cache or a folder on disk."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from advdiff_core.errors import DataError, escape, nearest
from advdiff_core.settings import setting, settings
from advdiff_datasets.encoded import EncodedImages, ImageSettings, Listing
from advdiff_datasets.packed import first_line

__all__ = ["HuggingFace"]

#: Rows whose pictures enter the fingerprint.
SAMPLED = 64
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@settings
class _Settings(ImageSettings):
    """Keys of `use = "hf:<name>"`; a subclass of each name has it as `variant`."""

    variant: ClassVar[str] = ""

    path: Path | None = setting(
        None, help="folder of `save_to_disk`, read instead of the hub and its cache"
    )
    split: str = setting("train", help="part of the data")
    config: str | None = setting(None, help="configuration on the hub, where there are several")
    revision: str | None = setting(None, help="commit or tag on the hub; pin it to repeat a run")
    image: str = setting("", help="column of pictures; empty: the only one there is")
    label: str = setting("", help="column of labels; empty: the only column of classes, or none")
    download: bool = setting(False, help="let the library fetch what its cache does not hold")


class HuggingFace(EncodedImages):
    """Any image data set of the Hugging Face hub, for example `hf:uoft-cs/cifar10`.

    Read through the library `datasets`, which never runs code of a data set. Without `download`
    only its cache is read. Labels are a column of classes (`ClassLabel`) or of whole numbers.
    """

    variants: ClassVar[str | None] = "name on the hub, for example hf:uoft-cs/cifar10"

    @settings
    class Settings(_Settings):
        """Keys of every `use = "hf:<name>"`."""

    @classmethod
    def settings_type(cls, variant: str | None) -> type[Any]:
        """Keys, with the name on the hub.

        Raises:
            ValueError: If the name is none.
        """
        if not variant or not _NAME.fullmatch(variant):
            message = f"{variant!r} is no name on the hub; write hf:<owner>/<name>"
            raise ValueError(message)
        return _settings_of(variant)

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        self._where = str(self.settings.path or f"hf:{self.settings.variant}")
        library = self._library()
        table = self._table(library)
        if not len(table):
            raise self._fault("holds no samples", code="D01")
        self._image = self._image_column(library, table)
        self._rows = table.cast_column(self._image, library.Image(decode=False))
        self._label = self._label_column(library, table)
        return self._listing_of(library, table)

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        where = f"{self._where}: row {index}"
        stored = self._rows[index][self._image]
        if stored and stored.get("bytes"):
            return stored["bytes"], where
        if stored and stored.get("path"):
            try:
                return Path(stored["path"]).read_bytes(), f"{where} ({stored['path']})"
            except OSError as cause:
                message = f"its file {stored['path']} cannot be read: {cause.strerror}"
                raise DataError(message, code="D02", where=where) from cause
        raise DataError("has no picture", code="D02", where=where, fix="skip it with data.on_bad")

    def fingerprint(self) -> str:
        """Digest of count, columns, labels and the contents of 64 pictures."""
        count = len(self._rows)
        digest = hashlib.sha256(f"{count} {self._image} {self._label}".encode())
        if self._labels is not None:
            digest.update(self._labels.numpy().tobytes())
        for index in range(0, count, max(1, count // SAMPLED)):
            digest.update(self.encoded(index)[0])
        return digest.hexdigest()

    def _fault(self, message: str, *, code: str = "D03", fix: str = "") -> DataError:
        return DataError(message, code=code, where=self._where, fix=fix)

    def _library(self) -> Any:
        try:
            import datasets
        except ImportError as cause:
            fix = 'pip install "advdiff-datasets[hf]"'
            message = "reading it needs the package datasets"
            raise self._fault(message, code="D01", fix=fix) from cause
        return datasets

    def _table(self, library: Any) -> Any:
        """The rows of the split."""
        given = self.settings
        try:
            if given.path is not None:
                return self._part(library.load_from_disk(str(given.path)))
            with _offline(library, not given.download):
                return library.load_dataset(
                    given.variant, given.config, split=given.split, revision=given.revision
                )
        except DataError:
            raise
        # The library raises whatever its network layer, readers and the hub raise.
        except Exception as cause:
            fix = "set path to a folder of save_to_disk, or download = true"
            if given.path is not None:
                fix = "path is a folder that datasets.Dataset.save_to_disk wrote"
            elif given.download:
                fix = "check the name and the network, or set path to a folder of save_to_disk"
            raise self._fault(
                f"cannot be read: {first_line(cause)}", code="D01", fix=fix
            ) from cause

    def _part(self, loaded: Any) -> Any:
        if not hasattr(loaded, "keys"):
            return loaded
        if self.settings.split not in loaded:
            near = nearest(self.settings.split, loaded)
            fix = f'write split = "{near or next(iter(loaded), "")}"'
            message = f"has no split {self.settings.split!r}; it has {', '.join(loaded)}"
            raise self._fault(message, code="D01", fix=fix)
        return loaded[self.settings.split]

    def _image_column(self, library: Any, table: Any) -> str:
        columns = [k for k, v in table.features.items() if isinstance(v, library.Image)]
        return self._column("image", self.settings.image, columns, "pictures")

    def _label_column(self, library: Any, table: Any) -> str:
        columns = [k for k, v in table.features.items() if isinstance(v, library.ClassLabel)]
        if self.settings.label:
            whole = [k for k, v in table.features.items() if "int" in getattr(v, "dtype", "")]
            columns = [*columns, *(k for k in whole if k not in columns)]
        if not self.settings.label and not columns:
            return ""
        return self._column("label", self.settings.label, columns, "classes")

    def _column(self, key: str, wanted: str, columns: list[str], what: str) -> str:
        if wanted in columns:
            return wanted
        if not wanted and len(columns) == 1:
            return columns[0]
        found = f"has no column {wanted!r} of {what}" if wanted else f"has no one column of {what}"
        near = nearest(wanted, columns) or (columns[0] if columns else "")
        message = f"{found}; such columns: {', '.join(columns) or 'none'}"
        raise self._fault(message, code="D01", fix=f'write {key} = "{near}"' if near else "")

    def _listing_of(self, library: Any, table: Any) -> Listing:
        self._labels = None
        if not self._label:
            return Listing(len(table))
        values = table[self._label]
        empty = next((row for row, value in enumerate(values) if value is None or value < 0), None)
        if empty is not None:
            message = f"row {empty} has the label {escape(values[empty])}, wanted a class"
            raise self._fault(message, fix="write another label column, or a split with labels")
        self._labels = torch.tensor(list(values), dtype=torch.int64)
        feature = table.features[self._label]
        named = isinstance(feature, library.ClassLabel)
        classes = feature.num_classes if named else int(self._labels.max()) + 1
        return Listing(len(table), self._labels, classes)


@functools.cache
def _settings_of(variant: str) -> type[Any]:
    body = {"variant": variant, "__doc__": f'Keys of `use = "hf:{variant}"`.'}
    return attrs.make_class(
        "Settings", {}, bases=(_Settings,), frozen=True, kw_only=True, class_body=body
    )


@contextmanager
def _offline(library: Any, offline: bool) -> Iterator[None]:
    """Keep the library off the network; it would wait for it before it looks into its cache."""
    from huggingface_hub import constants

    places = [(library.config, "HF_HUB_OFFLINE"), (constants, "HF_HUB_OFFLINE")]
    before = [(place, name, getattr(place, name)) for place, name in places]
    try:
        for place, name, was in before:
            setattr(place, name, was or offline)
        yield
    finally:
        for place, name, was in before:
            setattr(place, name, was)
