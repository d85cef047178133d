"""MNIST and Fashion-MNIST from their idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

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

__all__ = ["MNIST", "FashionMNIST"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
#: Both train files unpacked have 47 MB.
MAX_BYTES = 2**28


@settings
class _Settings:
    """Keys of `use = "mnist"` and `use = "fashion-mnist"`."""

    path: Path = setting(help="folder with the idx files, packed (.gz) or not, or torchvision's")
    split: str = setting("train", help="part of the data", choices=("train", "test"))
    pad: int = setting(
        0, ge=0, le=98, unit="pixels", help="border of background on each side; 2 gives 32x32"
    )
    size: int = size_setting()
    download: bool = setting(False, help="let torchvision fetch the files into path if missing")


class MNIST(PackedImages):
    """70,000 grey handwritten digits, 28x28; 60,000 to train on (LeCun, Cortes, Burges 1998)."""

    @settings
    class Settings(_Settings):
        """Keys of `use = "mnist"`."""

    def read(self) -> Held:
        """See `PackedImages.read`."""
        return _read(self.settings, "MNIST")


class FashionMNIST(PackedImages):
    """70,000 grey pictures of 10 kinds of clothes, 28x28; 60,000 to train on (Xiao et al. 2017)."""

    @settings
    class Settings(_Settings):
        """Keys of `use = "fashion-mnist"`."""

    def read(self) -> Held:
        """See `PackedImages.read`."""
        return _read(self.settings, "FashionMNIST")


def _read(settings: Any, name: str) -> Held:
    paths = _paths(settings.path, settings.split, name)
    if paths is None and settings.download:
        _download(settings.path, settings.split, name)
        paths = _paths(settings.path, settings.split, name)
    if paths is None:
        wanted = " and ".join(FILES[settings.split])
        message = f"holds no {wanted} (.gz or not), nor {name}/raw with them"
        raise fault(
            settings.path, message, code="D01", fix="put them there, or set download = true"
        )
    found, pad = paths, settings.pad
    held = once(settings.split, found, lambda: _images(found))
    if not pad:
        return held
    x, y = held.packed
    return Held(Packed(F.pad(x, (pad, pad, pad, pad)), y))


def _images(paths: list[Path]) -> Packed:
    x, y = _array(paths[0], axes=3), _array(paths[1], axes=1).long()
    if len(x) != len(y) or not len(x):
        message = f"has {len(y)} labels for {len(x)} images"
        raise fault(paths[1], message)
    check_labels(y, PackedImages.classes, paths[1])
    return Packed(x[:, None], y)


def _paths(root: Path, split: str, name: str) -> list[Path] | None:
    """Images and labels, packed or not."""
    folders = (".", f"{name}/raw", "raw")
    for end in ("", ".gz"):
        found = find_files(root, [f"{file}{end}" for file in FILES[split]], folders)
        if found is not None:
            return found
    return None


def _array(path: Path, axes: int) -> Tensor:
    """Array of bytes: magic number, big-endian sizes, values."""
    raw = _bytes(path)
    start = 4 * (1 + axes)
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, axes)):
        raise fault(path, f"is no idx file of bytes with {axes} axes: begins with {raw[:4].hex()}")
    sizes = [int.from_bytes(raw[at : at + 4], "big") for at in range(4, start, 4)]
    if len(raw) - start != math.prod(sizes):
        message = f"has {len(raw) - start:,} values, its head says {math.prod(sizes):,}"
        raise fault(path, message)
    return (
        as_tensor(raw[start:]).view(sizes) if len(raw) > start else as_tensor(b"\0")[:0].view(sizes)
    )


def _bytes(path: Path) -> bytes:
    """The file's content, unpacked."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as cause:
        raise fault(path, f"is damaged: {type(cause).__name__}: {cause}") from cause
    if len(raw) > MAX_BYTES:
        raise fault(path, f"unpacks to more than {MAX_BYTES:,} bytes")
    return raw


def _download(root: Path, split: str, name: str) -> None:
    from torchvision import datasets

    maker = getattr(datasets, name)
    what = " and ".join(f"{file}.gz" for file in FILES[split])
    fetch(lambda: maker(root, train=split == "train", download=True), root, what)
