"""Data sets of encoded pictures, decoded as they are asked for."""

from __future__ import annotations

import os
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from attrs import evolve
from torch import Tensor

from advdiff_core.images import RESAMPLING, ImageRule, decode_bytes
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = ["EncodedImages", "ImageSettings", "Listing"]


@settings
class ImageSettings:
    """Keys of every data set of encoded pictures."""

    resolution: int = setting(
        0, help="side of the images; 0: their own size, one for all", ge=0, unit="pixels"
    )
    channels: int = setting(3, help="3: RGB; 1: grey", choices=(1, 3))
    resize: str = setting("lanczos", help="filter of the resizing", choices=tuple(RESAMPLING))
    max_pixels: int = setting(2**26, help="largest picture that is decoded", ge=1, unit="pixels")
    threads: int = setting(0, help="decoding threads; 0: one per core, at most 8", ge=0, le=64)


class Listing:
    """What is known of the pictures without decoding them.

    Args:
        count: Number of pictures.
        labels: Labels [N], int64; None without.
        classes: Number of classes; 0 without labels.
    """

    def __init__(self, count: int, labels: Tensor | None = None, classes: int = 0) -> None:
        self.count = count
        self.labels = labels
        self.classes = classes


class EncodedImages(Dataset):
    """Base of data sets whose pictures are PNG, JPEG or WebP files in some container.

    A picture is turned as its EXIF data say, made grey or RGB, cut to the central square and
    resized to `resolution`; values are in [-1, 1]. What cannot be decoded is named.
    """

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._listing = self.open()
        rule = ImageRule(
            channels=settings.channels,
            resolution=settings.resolution or None,
            resize=settings.resize,
            max_pixels=settings.max_pixels,
        )
        # The first image fixes the size where no resolution does.
        first = decode_bytes(*self.encoded(0), rule).shape if rule.resolution is None else None
        self._rule = rule if first is None else evolve(rule, size=(first[1], first[2]))
        threads = settings.threads or min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="advdiff-decode")

    @abstractmethod
    def open(self) -> Listing:
        """Find the pictures; called once, before anything else.

        Raises:
            DataError: D01 if there are none, D02 if the container is damaged.
        """

    @abstractmethod
    def encoded(self, index: int) -> tuple[bytes, str]:
        """The encoded picture and what messages call it; called from several threads.

        Raises:
            DataError: D02 if it cannot be read.
        """

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        size = self._rule.size or (self.settings.resolution,) * 2
        return DataInfo(
            shape=(self.settings.channels, *size), count=self._listing.count,
            domain=Domain(-1.0, 1.0), classes=self._listing.classes,
        )  # fmt: skip

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        pixels = list(self._pool.map(self._decoded, indices.tolist()))
        x = torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1
        labels = self._listing.labels
        return Batch(x, None if labels is None else labels[indices])

    def _decoded(self, index: int) -> np.ndarray:
        raw, where = self.encoded(index)
        return decode_bytes(raw, where, self._rule)
