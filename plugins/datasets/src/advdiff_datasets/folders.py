"""ImageNet and CelebA as folders of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from advdiff_core.errors import DataError, nearest
from advdiff_core.images import SUFFIXES
from advdiff_core.settings import setting, settings
from advdiff_datasets.encoded import EncodedImages, ImageSettings, Listing
from advdiff_datasets.packed import fault

__all__ = ["CelebA", "ImageNetFolder", "read_file"]

#: Files whose contents enter the fingerprint of a folder, and how much of each.
SAMPLED_FILES, SAMPLED_BYTES = 64, 2**16


def read_file(path: Path) -> bytes:
    """Content of a picture's file.

    Raises:
        DataError: D02 if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise fault(path, f"cannot be read: {cause.strerror}", fix="") from cause


def digest_of(files: list[Path], root: Path, labels: Tensor | None) -> str:
    """Digest of names, sizes and labels [N], and of the beginning of 64 files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    for file in files[:: max(1, len(files) // SAMPLED_FILES)]:
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLED_BYTES))
    return digest.hexdigest()


def pictures(folder: Path) -> list[Path]:
    """Picture files of a folder, hidden ones left out, in order of name."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as cause:
        raise fault(folder, f"cannot be listed: {cause.strerror}", code="D01", fix="") from cause
    return [folder / name for name in names if Path(name).suffix.lower() in SUFFIXES]


class ImageNetFolder(EncodedImages):
    """ImageNet as it unpacks: `train/<wnid>/*.JPEG`, and `val` sorted the same way or flat.

    Classes are the subfolders of `train` in order of name (Russakovsky et al. 2015). A flat `val`
    takes its labels from `val_labels`: one line per picture in order of name, a wnid or a number.
    Any data set in the same layout will do. It is not fetched: its terms ask for a registration.
    """

    @settings
    class Settings(ImageSettings):
        """Keys of `use = "imagenet-folder"`."""

        path: Path = setting(help="folder that holds train/ and val/")
        split: str = setting("train", help="part of the data", choices=("train", "val"))
        val_labels: Path | None = setting(None, help="labels of a flat val/, one a line")

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        self._root = self.settings.path / self.settings.split
        names = self._classes()
        self._files, labels = self._flat(names) if self._is_flat() else self._sorted(names)
        if not self._files:
            raise fault(self._root, "holds no PNG, JPEG or WebP files", code="D01", fix="")
        self._labels = torch.tensor(labels, dtype=torch.int64)
        return Listing(len(self._files), self._labels, len(names))

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        path = self._files[index]
        return read_file(path), str(path)

    def fingerprint(self) -> str:
        """Digest of names, sizes and labels, and of the beginning of 64 files."""
        return digest_of(self._files, self._root, self._labels)

    def _classes(self) -> list[str]:
        """Names of the classes; those of train, which a split must not number in its own way."""
        for folder in (self.settings.path / "train", self._root):
            if folder.is_dir():
                return sorted(one.name for one in _subfolders(folder))
        fix = "unpack the training archive so that path/train/<wnid>/*.JPEG exist"
        raise fault(self._root, "there is no such folder", code="D01", fix=fix)

    def _is_flat(self) -> bool:
        if not self._root.is_dir():
            raise fault(self._root, "there is no such folder", code="D01", fix="unpack it there")
        return not any(True for _ in _subfolders(self._root))

    def _sorted(self, names: list[str]) -> tuple[list[Path], list[int]]:
        found: list[Path] = []
        labels: list[int] = []
        for folder in sorted(_subfolders(self._root)):
            if folder.name not in names:
                message = f"train/ has no class {folder.name!r}"
                raise fault(folder, message, code="D03", fix="remove the folder, or add the class")
            inside = pictures(folder)
            found += inside
            labels += [names.index(folder.name)] * len(inside)
        return found, labels

    def _flat(self, names: list[str]) -> tuple[list[Path], list[int]]:
        files, source = pictures(self._root), self.settings.val_labels
        if source is None:
            message = "holds pictures without subfolders, which say no class"
            raise fault(self._root, message, code="D01", fix="set val_labels to a file of labels")
        lines = _lines(source)
        if len(lines) != len(files):
            message = f"has {len(lines)} lines for {len(files)} pictures"
            raise fault(source, message, code="D03", fix="give one label per picture")
        return files, [_class_of(word, names, source, row) for row, word in enumerate(lines, 1)]


def _subfolders(folder: Path) -> Iterator[Path]:
    return (one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as cause:
        raise fault(path, f"cannot be read: {cause}", code="D01", fix="") from cause


def _class_of(word: str, names: list[str], path: Path, row: int) -> int:
    word = word.strip()
    if word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < len(names):
        return int(word)
    message = f"line {row}: {word!r} is no class of train/ and no number below {len(names)}"
    near = nearest(word, names)
    raise fault(path, message, code="D03", fix=f"did you mean {near!r}?" if near else "")


#: Codes of `list_eval_partition.txt`.
PARTS = {"train": {"0"}, "valid": {"1"}, "test": {"2"}, "all": {"0", "1", "2"}}


class CelebA(EncodedImages):
    """202,599 aligned photos of faces with 40 attributes, 178x218 (Liu et al. 2015).

    Wants `img_align_celeba/` with the pictures, `list_eval_partition.txt` and, for labels,
    `list_attr_celeba.txt`, in `path` or in `path/celeba` (torchvision's place). They are not
    fetched: the authors' host limits downloads, and ships several files under terms of its own.
    """

    @settings
    class Settings(ImageSettings):
        """Keys of `use = "celeba"`."""

        path: Path = setting(help="folder that holds the pictures' folder and the lists")
        split: str = setting("train", help="part of the data", choices=tuple(PARTS))
        attribute: str = setting(
            "", help="attribute that is the label (0 or 1), for example Smiling; empty: no labels"
        )

    def open(self) -> Listing:
        """See `EncodedImages.open`."""
        path = self.settings.path
        root = next((r for r in (path, path / "celeba") if (r / "img_align_celeba").is_dir()), None)
        if root is None:
            message = "holds no img_align_celeba/, nor celeba/img_align_celeba/"
            raise fault(path, message, code="D01", fix="unpack img_align_celeba.zip there")
        self._folder = root / "img_align_celeba"
        self._names = self._part(root / "list_eval_partition.txt")
        self._labels = self._read_labels(root / "list_attr_celeba.txt")
        return Listing(len(self._names), self._labels, 0 if self._labels is None else 2)

    def encoded(self, index: int) -> tuple[bytes, str]:
        """See `EncodedImages.encoded`."""
        path = self._folder / self._names[index]
        return read_file(path), str(path)

    def fingerprint(self) -> str:
        """Digest of names, sizes and labels, and of the beginning of 64 files."""
        return digest_of([self._folder / name for name in self._names], self._folder, self._labels)

    def _part(self, source: Path) -> list[str]:
        wanted = PARTS[self.settings.split]
        rows = [line.split() for line in _lines(source)]
        bad = next((number for number, row in enumerate(rows, 1) if len(row) != 2), 0)
        if bad:
            raise fault(source, f"line {bad} is not 'name part'")
        names = [row[0] for row in rows if row[1] in wanted]
        _check_names(names, source)
        if not names:
            message = f"names no picture of the part {self.settings.split!r}"
            raise fault(source, message, code="D01")
        return names

    def _read_labels(self, source: Path) -> Tensor | None:
        wanted = self.settings.attribute
        if not wanted:
            return None
        lines = _lines(source)
        head = lines[1].split() if len(lines) > 1 else []
        if wanted not in head:
            near = nearest(wanted, head)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(head) or 'none'}"
            raise fault(source, f"has no attribute {wanted!r}", code="D01", fix=hint)
        column = 1 + head.index(wanted)
        signs = dict(_signs(lines[2:], column, len(head), source))
        missing = next((name for name in self._names if name not in signs), None)
        if missing is not None:
            raise fault(source, f"says nothing of {missing}")
        return torch.tensor([signs[name] for name in self._names])


def _check_names(names: Iterable[str], source: Path) -> None:
    """A list is a file from outside: its names must stay inside of the folder."""
    bad = next((name for name in names if Path(name).name != name or name.startswith(".")), None)
    if bad is not None:
        raise DataError(f"names {bad!r}, which is no file name", code="D02", where=str(source))


def _signs(
    lines: list[str], column: int, attributes: int, source: Path
) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(lines, 3):
        row = line.split()
        if len(row) != attributes + 1 or row[column] not in ("-1", "1"):
            message = f"line {number} is not a name and {attributes} values of -1 or 1"
            raise fault(source, message)
        yield row[0], int(row[column] == "1")
