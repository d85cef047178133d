"""The data feed: which samples a step sees, as a pure function of seed and images seen."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from advdiff_core.draws import BLOCK, permutation
from advdiff_core.engine.augment import Pipeline, rows_of
from advdiff_core.engine.source import SAMPLE_CHECK, Source
from advdiff_core.types import Augmented

__all__ = ["CACHE_BYTES", "SAMPLE_CHECK", "Feed"]

#: Data up to this size are read once and kept in memory.
CACHE_BYTES = 256 * 2**20


class Feed:
    """Batches in a keyed order: position p of the run reads index `perm(epoch)[p mod N]`.

    A dataset with an order of its own (`Dataset.order`) is asked instead. Nothing is stored, so
    resuming needs the images seen and no more, and neither order nor augmentations depend on the
    number of processes, workers or micro-batches.

    Args:
        source: The data.
        seed: Seed of the run.
        place: Moves samples to the device.
        stream: Name of the order; fresh players have their own.
        workers: Threads that read the next batch while the networks run; 0 reads in between. Image
            decoding leaves the interpreter to others, so threads do what processes would. They
            augment, too, where the device is the CPU.
        augment: The augmentations, and the samples per step.
        stage: What workers do to a part once it is read, so that it is moved to the device sooner.
    """

    def __init__(  # noqa: PLR0913 - what a feed is made of.
        self,
        source: Source,
        *,
        seed: int,
        place: Callable[[Tensor], Tensor],
        stream: str = "",
        workers: int = 0,
        augment: Pipeline | None = None,
        stage: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source = source
        self.seed = seed
        self.place = place
        self.stream = stream
        self.workers = workers
        self.stage = stage
        # Without augmentations it is false, and still knows the batch.
        self.augment = Pipeline(seed=seed) if augment is None else augment
        self._on_cpu = place(torch.empty(0)).device.type == "cpu"
        self._orders: dict[int, Tensor] = {}
        self._cache = self._read_all() if self._fits() else None
        self._ahead: tuple[tuple[int, int], list[Future[Augmented]]] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def share(self, stream: str) -> Feed:
        """The same data in an order of its own, sharing what is cached."""
        other = object.__new__(Feed)
        other.__dict__ = {**self.__dict__, "stream": stream, "_orders": {}, "_ahead": None}
        return other

    def indices(self, position: int, size: int) -> Tensor:
        """Sample indices [size] of the positions from `position` on."""
        key = (self.seed, "data", self.stream)
        own = self.source.dataset.order(position, size, batch=self.augment.batch, key=key)
        if own is not None:
            return own
        count = self.source.info.count
        parts = []
        while size > 0:
            epoch, offset = divmod(position, count)
            part = self._order(epoch)[offset : offset + size]
            parts.append(part)
            position, size = position + len(part), size - len(part)
        return torch.cat(parts)

    def batch(self, position: int, size: int, *, ahead: int | None = None) -> Augmented:
        """Samples at `size` positions from `position`, augmented, on the device.

        Args:
            position: First position of the run.
            size: Number of samples, of one step if they are augmented.
            ahead: Position likely to be asked for next, read in the background.
        """
        low, count = self.augment.widened(position, size)
        if self._cache is not None:
            batch = self._augmented(self._placed(self._cached(self.indices(low, count))), low)
        else:
            batch = self._fetched(low, count)
            batch = batch if self._on_cpu else self._augmented(batch, low)
            if ahead is not None and self.workers:
                wide = self.augment.widened(ahead, size)
                self._ahead = (wide, self._submit(*wide))
        return rows_of(batch, slice(position - low, position - low + size))

    def _cached(self, indices: Tensor) -> Augmented:
        assert self._cache is not None
        x, y = self._cache
        where = indices.to(x.device)
        return Augmented(x[where], None if y is None else y[where])

    def _placed(self, batch: Augmented) -> Augmented:
        x, y, told = (None if part is None else self.place(part) for part in batch)
        assert x is not None
        return Augmented(x, y, told)

    def _augmented(self, batch: Augmented, position: int) -> Augmented:
        if not self.augment:
            return batch
        made = self.augment(batch, position=position, stream=self.stream)
        return made._replace(x=self.place(made.x))

    def _fetched(self, position: int, size: int) -> Augmented:
        ahead, self._ahead = self._ahead, None
        if not self.workers:
            return self._placed(self._read(self.indices(position, size), position))
        fits = ahead is not None and ahead[0] == (position, size)
        futures = ahead[1] if fits and ahead is not None else self._submit(position, size)
        parts = [future.result() for future in futures]
        if self.stage is None:
            return self._placed(_joined(parts))
        # Joined before the move they would lie in memory that is not staged.
        return _joined([self._placed(part) for part in parts])

    def _submit(self, position: int, size: int) -> list[Future[Augmented]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="advdiff-feed")
        indices = self.indices(position, size)
        # Samples that are mixed are kept together.
        grain = BLOCK if self.augment.mixes else 1
        each = -(-size // (self.workers * grain)) * grain
        return [
            self._pool.submit(self._staged, indices[first : first + each], position + first)
            for first in range(0, size, each)
        ]

    def _staged(self, indices: Tensor, position: int) -> Augmented:
        read = self._read(indices, position)
        if self.stage is None:
            return read
        x, y, told = (None if part is None else self.stage(part) for part in read)
        assert x is not None
        return Augmented(x, y, told)

    def _read(self, indices: Tensor, position: int) -> Augmented:
        """Samples at `indices`; augmented if that is work for the CPU."""
        batch = self.source.batch(indices)
        read = Augmented(batch.x, batch.y)
        if not (self.augment and self._on_cpu):
            return read
        return self.augment(read, position=position, stream=self.stream)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            key = (self.seed, "data", self.stream, epoch)
            self._orders[epoch] = permutation(self.source.info.count, *key)
        return self._orders[epoch]

    def _fits(self) -> bool:
        info = self.source.info
        return info.count * 4 * torch.Size(info.shape).numel() <= CACHE_BYTES

    def _read_all(self) -> tuple[Tensor, Tensor | None]:
        whole = self.source.batch(torch.arange(self.source.info.count))
        return self.place(whole.x), None if whole.y is None else self.place(whole.y)


def _joined(parts: list[Augmented]) -> Augmented:
    columns = [[t for t in column if t is not None] for column in zip(*parts, strict=True)]
    x, y, told = (torch.cat(column) if column else None for column in columns)
    assert x is not None
    return Augmented(x, y, told)
