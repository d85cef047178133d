"""Image files of a folder."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve
from torch import Tensor

from advdiff_core.errors import DataError
from advdiff_core.images import RESAMPLING, SUFFIXES, ImageRule, decode
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = ["ImageFolder", "list_images"]

#: Files whose contents enter the fingerprint of a folder, and how much of each.
SAMPLED_FILES, SAMPLED_BYTES = 64, 2**16


class ImageFolder(Dataset):
    """PNG, JPEG and WebP files of a folder and its subfolders, read as they are asked for.

    Order: by path. A picture is turned as its EXIF data say, made grey or RGB, cut to the central
    square and resized to `resolution`; values are in [-1, 1]. Refused, each by name: files that
    are empty, truncated, corrupt, animated, transparent, CMYK, deeper than 8 bits, larger than
    `max_pixels`, smaller than `resolution`, or not what their extension says. Other extensions and
    hidden files are passed over.
    """

    @settings
    class Settings:
        """Keys of `use = "image-folder"`."""

        path: Path = setting(help="folder")
        resolution: int = setting(
            0, help="side of the images; 0: their own size, one for all", ge=0, unit="pixels"
        )
        channels: int = setting(3, help="3: RGB; 1: grey", choices=(1, 3))
        labels: str = setting(
            "none",
            help="folders: the class is the subfolder, in order of name; none: no labels",
            choices=("none", "folders"),
        )
        resize: str = setting("lanczos", help="filter of the resizing", choices=tuple(RESAMPLING))
        max_pixels: int = setting(
            2**26, help="largest picture that is decoded", ge=1, unit="pixels"
        )
        threads: int = setting(0, help="decoding threads; 0: one per core, at most 8", ge=0, le=64)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._files = list_images(settings.path)
        self._labels, classes = self._read_labels()
        rule = ImageRule(
            channels=settings.channels,
            resolution=settings.resolution or None,
            resize=settings.resize,
            max_pixels=settings.max_pixels,
        )
        # The first image fixes the size where no resolution does.
        first = decode(self._files[0], rule).shape if rule.resolution is None else None
        self._rule = rule if first is None else evolve(rule, size=(first[1], first[2]))
        size = self._rule.size or (settings.resolution, settings.resolution)
        self._info = DataInfo(
            shape=(settings.channels, *size),
            count=len(self._files),
            domain=Domain(-1.0, 1.0),
            classes=classes,
        )
        threads = settings.threads or min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="advdiff-decode")

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return self._info

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        files = [self._files[index] for index in indices.tolist()]
        pixels = list(self._pool.map(lambda file: decode(file, self._rule), files))
        x = torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1
        return Batch(x, None if self._labels is None else self._labels[indices])

    def fingerprint(self) -> str:
        """Digest of the names and sizes of all files and the first 64 KiB of 64 of them."""
        root = self.settings.path
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
        step = max(1, len(self._files) // SAMPLED_FILES)
        for file in self._files[::step]:
            with file.open("rb") as stream:
                digest.update(stream.read(SAMPLED_BYTES))
        return digest.hexdigest()

    def _read_labels(self) -> tuple[Tensor | None, int]:
        if self.settings.labels == "none":
            return None, 0
        root, fix = self.settings.path, 'write labels = "none", or sort the images into folders'
        parts = [file.relative_to(root).parts for file in self._files]
        loose = next((part[0] for part in parts if len(part) == 1), None)
        if loose is not None:
            message = f"{loose!r} is in no subfolder, so it has no class"
            raise DataError(message, code="D01", where=str(root), fix=fix)
        names = sorted({part[0] for part in parts})
        if len(names) == 1:
            message = f"has one class only: {names[0]!r}"
            raise DataError(message, code="D01", where=str(root), fix=fix)
        number = {name: k for k, name in enumerate(names)}
        return torch.tensor([number[part[0]] for part in parts]), len(names)


def list_images(root: Path) -> list[Path]:
    """Image files below `root`, sorted by path; hidden ones are left out.

    Raises:
        DataError: D01 if there is no such folder, it cannot be read or holds no images.
    """
    if not root.is_dir():
        message = "is not a folder" if root.exists() else "there is no such folder"
        raise DataError(message, code="D01", where=str(root), fix="set data.path")

    def stop(cause: OSError) -> None:
        name = str(cause.filename or root)
        raise DataError(f"cannot be listed: {cause.strerror}", code="D01", where=name) from cause

    found: list[Path] = []
    for folder, inner, files in os.walk(root, onerror=stop):
        inner[:] = [name for name in inner if not name.startswith(".")]
        shown = (Path(folder, name) for name in files if not name.startswith("."))
        found += [file for file in shown if file.suffix.lower() in SUFFIXES]
    if not found:
        message = "holds no PNG, JPEG or WebP files"
        raise DataError(message, code="D01", where=str(root))
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())
