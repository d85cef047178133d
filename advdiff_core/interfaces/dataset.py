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

    @property
    def pictures(self) -> DataInfo | None:
        """What `decode` makes, in the domain [-1, 1]; None for samples shown as they are."""
        return None

    def decode(self, x: Tensor) -> Tensor:
        """What a person or a metric of images looks at, for samples that are no images.

        Args:
            x: Samples [B, ...] in the data's domain, for example latents.

        Returns:
            Images [B, C, H, W] on the CPU as `pictures` describes; `x` itself by default.
        """
        return x

    def originals(self, indices: Tensor) -> Tensor:
        """Pictures [B, C, H, W] of the samples at `indices` [B]: what metrics call real.

        By default the samples, decoded; a dataset that encodes images gives the images.
        """
        return self.decode(self.batch(indices).x)

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
