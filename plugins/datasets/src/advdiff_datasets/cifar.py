"""CIFAR-10 and CIFAR-100 from the files their authors publish."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.pickles.machine import read_pickle
from advdiff_core.pickles.rules import as_array
from advdiff_core.settings import setting, settings
from advdiff_datasets.packed import (
    Held,
    Packed,
    PackedImages,
    as_tensor,
    check_labels,
    fault,
    fetch,
    find_files,
    once,
    size_setting,
)

__all__ = ["CIFAR10", "CIFAR100"]

PIXELS = 3 * 32 * 32


@frozen(kw_only=True)
class _Files:
    """Where one of the two data sets keeps what.

    Attributes:
        python: Folder and archive of the pickled version, and its files by split.
        binary: The same for the binary version.
        label_bytes: Bytes before the pixels of an image in the binary version; the last counts.
        label_key: Key of the labels in the pickled version.
        classes: Number of classes.
        torchvision: Name of the class that downloads it.
    """

    python: tuple[str, str, Mapping[str, tuple[str, ...]]]
    binary: tuple[str, str, Mapping[str, tuple[str, ...]]]
    label_bytes: int
    label_key: str
    classes: int
    torchvision: str


TEN = _Files(
    python=(
        "cifar-10-batches-py", "cifar-10-python.tar.gz",
        {"train": tuple(f"data_batch_{n}" for n in range(1, 6)), "test": ("test_batch",)},
    ),
    binary=(
        "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
        {"train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test": ("test_batch.bin",)},
    ),
    label_bytes=1, label_key="labels", classes=10, torchvision="CIFAR10",
)  # fmt: skip
HUNDRED = _Files(
    python=(
        "cifar-100-python", "cifar-100-python.tar.gz", {"train": ("train",), "test": ("test",)},
    ),
    binary=(
        "cifar-100-binary", "cifar-100-binary.tar.gz",
        {"train": ("train.bin",), "test": ("test.bin",)},
    ),
    label_bytes=2, label_key="fine_labels", classes=100, torchvision="CIFAR100",
)  # fmt: skip


@settings
class _Settings:
    """Keys of both data sets."""

    path: Path = setting(help="folder that holds the unpacked files, their folder or the archive")
    split: str = setting("train", help="part of the data", choices=("train", "test"))
    size: int = size_setting()
    download: bool = setting(False, help="let torchvision fetch the files into path if missing")


class CIFAR10(PackedImages):
    """60,000 colour photos of 10 kinds of things, 32x32; 50,000 to train on (Krizhevsky 2009).

    Reads the pickled or the binary version, unpacked or not. Pickles are read as data, by a machine
    that runs nothing.
    """

    @settings
    class Settings(_Settings):
        """Keys of `use = "cifar10"`."""

    classes = TEN.classes

    def read(self) -> Held:
        """See `PackedImages.read`."""
        return _read(TEN, self.settings)


class CIFAR100(PackedImages):
    """60,000 colour photos of 100 kinds of things, 32x32, with their fine labels (Krizhevsky 2009).

    Reads the same versions as `cifar10`.
    """

    @settings
    class Settings(_Settings):
        """Keys of `use = "cifar100"`."""

    classes = HUNDRED.classes

    def read(self) -> Held:
        """See `PackedImages.read`."""
        return _read(HUNDRED, self.settings)


def _read(files: _Files, settings: Any) -> Held:
    found = _source(files, settings.path, settings.split)
    if found is None and settings.download:
        _download(files, settings.path, settings.split)
        found = _source(files, settings.path, settings.split)
    if found is None:
        names = f"{files.python[0]}/, {files.binary[0]}/, {files.python[1]} or {files.binary[1]}"
        message = f"holds none of {names}"
        raise fault(settings.path, message, code="D01", fix="put one there, or set download = true")
    source = found
    what = f"{files.torchvision} {settings.split}"
    return once(what, source.paths, lambda: _joined([*source.parts(files)]))


def _joined(parts: list[Packed]) -> Packed:
    """One after the other; each is let go when it is copied."""
    count = sum(len(part.y) for part in parts)
    x, y = torch.empty(count, 3, 32, 32, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    while parts:
        part = parts.pop()
        x[count - len(part.y) : count], y[count - len(part.y) : count] = part
        count -= len(part.y)
    return Packed(x, y)


_Parser = Callable[[_Files, Path, bytes], Packed]


@frozen(kw_only=True)
class _Source:
    """Where a split lies.

    Attributes:
        parse: Reads the bytes of one file.
        paths: The files, or the archive.
        members: Names inside the archive; none for files.
    """

    parse: _Parser
    paths: list[Path]
    members: tuple[str, ...] = ()

    def parts(self, files: _Files) -> Iterator[Packed]:
        """What each file holds, in order; the bytes of one are held at a time."""
        if not self.members:
            for path in self.paths:
                yield self.parse(files, path, _bytes(path))
            return
        (archive,) = self.paths
        for name, content in _unpacked(archive, self.members).items():
            yield self.parse(files, archive / name, content)


def _source(files: _Files, root: Path, split: str) -> _Source | None:
    """Where the files of a split are."""
    versions: tuple[tuple[_Parser, Any], ...] = (
        (_from_binary, files.binary),
        (_from_pickle, files.python),
    )
    for parse, (folder, archive, splits) in versions:
        paths = find_files(root, splits[split], (folder, "."))
        if paths is not None:
            return _Source(parse=parse, paths=paths)
        if (root / archive).is_file():
            members = tuple(f"{folder}/{name}" for name in splits[split])
            return _Source(parse=parse, paths=[root / archive], members=members)
    return None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise fault(path, f"cannot be read: {cause.strerror}", code="D01") from cause


#: The largest file of either data set has 156 MB.
MAX_MEMBER = 2**28


def _unpacked(archive: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Files of an archive by name, read in memory; nothing is unpacked to disk."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            return {name: _member(tar, archive, name) for name in names}
    except (tarfile.TarError, EOFError, OSError) as cause:
        raise fault(archive, f"is damaged: {type(cause).__name__}: {cause}") from cause


def _member(tar: tarfile.TarFile, archive: Path, name: str) -> bytes:
    member = next((one for one in tar if one.name.removeprefix("./") == name), None)
    content = tar.extractfile(member) if member is not None and member.isfile() else None
    if member is None or content is None:
        raise fault(archive, f"holds no {name}", code="D01")
    if member.size > MAX_MEMBER:
        raise fault(archive, f"{name} has {member.size:,} bytes, at most {MAX_MEMBER:,} are read")
    return content.read()


def _from_binary(files: _Files, path: Path, raw: bytes) -> Packed:
    """Rows of label bytes and 3,072 bytes of pixels, red, green and blue planes."""
    row = files.label_bytes + PIXELS
    if not raw or len(raw) % row:
        message = f"has {len(raw):,} bytes, wanted a multiple of {row:,}: it was cut off"
        raise fault(path, message)
    rows = as_tensor(raw).view(-1, row)
    y = rows[:, files.label_bytes - 1].long()
    check_labels(y, files.classes, path)
    return Packed(rows[:, files.label_bytes :].reshape(-1, 3, 32, 32), y)


def _from_pickle(files: _Files, path: Path, raw: bytes) -> Packed:
    """A pickled dict with an array `data` [N, 3072] and a list of labels."""
    stored = read_pickle(io.BytesIO(raw), where=str(path))
    data, labels = _entries(stored, files.label_key, path)
    if data.dtype != torch.uint8 or data.dim() != 2 or data.shape[1] != PIXELS or not len(data):
        message = f"data is {data.dtype} {list(data.shape)}, wanted uint8 [N, {PIXELS}]"
        raise fault(path, message)
    if labels.shape != data.shape[:1] or labels.is_floating_point():
        message = f"has labels {list(labels.shape)} for {len(data)} images, wanted one integer each"
        raise fault(path, message, code="D03")
    y = labels.long()
    check_labels(y, files.classes, path)
    return Packed(data.view(-1, 3, 32, 32), y)


def _entries(stored: Any, label_key: str, path: Path) -> tuple[Tensor, Tensor]:
    try:
        # Keys are strings of Python 2, or bytes if the file was written again.
        named = {k.decode() if type(k) is bytes else k: v for k, v in stored.items()}
        # Copies: torch warns of arrays that are views of a file.
        return torch.tensor(as_array(named["data"])), torch.tensor(named[label_key])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as cause:
        message = f"is no CIFAR file: wanted a dict with 'data' and {label_key!r}"
        raise fault(path, message) from cause


def _download(files: _Files, root: Path, split: str) -> None:
    from torchvision import datasets

    maker = getattr(datasets, files.torchvision)
    what = f"{files.python[1]} or {files.binary[1]}"
    fetch(lambda: maker(root, train=split == "train", download=True), root, what)
