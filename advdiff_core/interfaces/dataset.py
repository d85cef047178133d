"""Datasets and corruptions."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from advdiff_core.interfaces.component import Component
from advdiff_core.types import Batch, DataInfo

__all__ = ["Corruption", "Dataset"]


class Dataset(Component):
    """Samples by index.

    Contract: `batch(indices)` is a pure function of the indices: the same answer in any order,
    batch, worker and process. Values are float32 inside `info.domain`.
    """

    @property
    @abstractmethod
    def info(self) -> DataInfo:
        """Shape, count, domain and classes; known without reading every sample."""

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Samples `x` [B, ...] and labels `y` [B] at `indices` [B], int64.

        Raises:
            DataError: If a sample cannot be read; names the file or index.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of names, sizes and sampled contents; changes when the data do."""

    def order(
        self, position: int, size: int, *, batch: int, key: tuple[object, ...]
    ) -> Tensor | None:
        """Which samples a run reads at its positions `[position, position + size)`, int64 [size].

        None, the default, leaves it to the core: every sample once in a random order, then again in
        another one. A dataset that composes batches answers instead. The answer is a pure function
        of the arguments, the same however the positions are cut.

        Args:
            position: First position; positions count the samples of the run from its start.
            size: Number of positions.
            batch: Samples per step: step b reads the positions `[b * batch, (b + 1) * batch)`.
            key: Words for generators: the run's seed and the name of the stream.
        """
        del position, size, batch, key
        return None


class Corruption(Component):
    """Damages a fraction of the samples, the same way each time they are read.

    Attributes:
        images_only: True if it needs `(C, H, W)` samples.
    """

    images_only: ClassVar[bool] = False

    @abstractmethod
    def corrupt(self, x: Tensor, indices: Tensor) -> Tensor:
        """Damaged copies of `x` [B, ...]; the damage of a sample depends on seed and index alone.

        Args:
            x: Clean samples [B, ...].
            indices: Their indices [B], int64.
        """

    @abstractmethod
    def affected(self, indices: Tensor) -> Tensor:
        """Which samples are damaged [B], bool."""
