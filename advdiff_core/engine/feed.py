"""The data feed: which samples a step sees, as a pure function of seed and images seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import permutation
from advdiff_core.errors import DataError
from advdiff_core.interfaces.dataset import Corruption, Dataset
from advdiff_core.types import Batch, DataInfo, Domain

__all__ = ["CACHE_BYTES", "Feed", "Source"]

#: Data up to this size are read once and kept in memory.
CACHE_BYTES = 256 * 2**20
#: Samples looked at before a run when the data are not read whole.
SAMPLE_CHECK = 256


@frozen(kw_only=True)
class BadSamples:
    """What to do with samples that cannot be read.

    Attributes:
        on_bad: "stop" or "skip" (take the next readable index instead, and count).
        limit: Most samples that may be skipped.
    """

    on_bad: str = "stop"
    limit: int = 0


class Source:
    """A dataset as the run sees it: in its domain, corrupted, checked.

    Args:
        dataset: The dataset.
        corruptions: Applied in order after the conversion to `domain`.
        domain: Domain values are converted to; None keeps the dataset's own.
        bad: What to do with unreadable samples.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        corruptions: Sequence[Corruption] = (),
        domain: Domain | None = None,
        bad: BadSamples | None = None,
    ) -> None:
        self.dataset = dataset
        self.corruptions = tuple(corruptions)
        self.bad = bad or BadSamples()
        native = dataset.info
        self.native = native.domain
        self.domain = domain if native.domain is not None and domain is not None else native.domain
        self.info = DataInfo(
            shape=native.shape, count=native.count, domain=self.domain, classes=native.classes
        )
        self.skipped: set[int] = set()

    def clean(self, indices: Tensor) -> Batch:
        """Samples [B, ...] at `indices` [B] without corruption, in the run's domain."""
        batch = self._read(indices)
        x = batch.x
        if self.native is not None and self.domain is not None and self.native != self.domain:
            unit = (x - self.native.low) / self.native.span
            x = self.domain.low + unit * self.domain.span
        return Batch(x, batch.y)

    def batch(self, indices: Tensor) -> Batch:
        """Samples as the model sees them [B, ...]."""
        batch = self.clean(indices)
        x = batch.x
        for corruption in self.corruptions:
            x = corruption.corrupt(x, indices)
        return Batch(x, batch.y)

    def check(self, indices: Tensor) -> None:
        """Look at the samples `indices` [B] before the run.

        Raises:
            DataError: D03 for values that are not finite or outside the domain, or labels out of
                range.
        """
        batch = self._read(indices)
        rows = batch.x.flatten(1)
        self._refuse(~rows.isfinite().all(1), indices, "has values that are not finite")
        if self.native is not None:
            low, high = self.native.low - 1e-4, self.native.high + 1e-4
            outside = (rows.amin(1) < low) | (rows.amax(1) > high)
            wanted = f"[{self.native.low:g}, {self.native.high:g}]"
            found = f"[{float(rows.min()):g}, {float(rows.max()):g}]"
            self._refuse(outside, indices, f"lies in {found}, outside the declared {wanted}")
        if batch.y is not None and self.info.classes:
            wrong = (batch.y < 0) | (batch.y >= self.info.classes)
            self._refuse(wrong, indices, f"has a label outside 0..{self.info.classes - 1}")

    def _refuse(self, rows: Tensor, indices: Tensor, complaint: str) -> None:
        if bool(rows.any()):
            index = int(indices[rows.nonzero()[0, 0]])
            message = f"sample {index} {complaint}"
            fix = "mend the data or the dataset's settings"
            raise DataError(message, code="D03", where="data", fix=fix)

    def _read(self, indices: Tensor) -> Batch:
        if self.bad.on_bad == "stop":
            return self.dataset.batch(indices)
        try:
            return self.dataset.batch(self._good(indices))
        except DataError:
            return self._read_singly(indices)

    def _good(self, indices: Tensor) -> Tensor:
        if not self.skipped:
            return indices
        return torch.tensor([self._next(int(index)) for index in indices], dtype=torch.int64)

    def _next(self, index: int) -> int:
        while index in self.skipped:
            index = (index + 1) % self.info.count
        return index

    def _read_singly(self, indices: Tensor) -> Batch:
        for index in indices.tolist():
            while True:
                try:
                    self.dataset.batch(torch.tensor([self._next(index)]))
                    break
                except DataError as cause:
                    self._skip(self._next(index), cause)
        return self.dataset.batch(self._good(indices))

    def _skip(self, index: int, cause: DataError) -> None:
        self.skipped.add(index)
        if len(self.skipped) > self.bad.limit or len(self.skipped) >= self.info.count:
            message = f"{len(self.skipped)} samples cannot be read, the last: {cause.message}"
            fix = "mend the files or raise data.max_bad"
            raise DataError(message, code="D02", where="data", fix=fix) from cause


class Feed:
    """Batches in a keyed order: position p of the run reads index `perm(epoch)[p mod N]`.

    Nothing is stored, so resuming needs the images seen and no more, and the order does not depend
    on the number of processes, workers or micro-batches.

    Args:
        source: The data.
        seed: Seed of the run.
        place: Moves samples to the device.
        stream: Name of the order; fresh players have their own.
        workers: Threads that read the next batch while the networks run; 0 reads in between. Image
            decoding leaves the interpreter to others, so threads do what processes would.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: int,
        place: Callable[[Tensor], Tensor],
        stream: str = "",
        workers: int = 0,
    ) -> None:
        self.source = source
        self.seed = seed
        self.place = place
        self.stream = stream
        self.workers = workers
        self._orders: dict[int, Tensor] = {}
        self._cache = self._read_all() if self._fits() else None
        self._ahead: tuple[tuple[int, int], list[Future[Batch]]] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def share(self, stream: str) -> Feed:
        """The same data in an order of its own, sharing what is cached."""
        other = object.__new__(Feed)
        other.__dict__ = {**self.__dict__, "stream": stream, "_orders": {}, "_ahead": None}
        return other

    def indices(self, position: int, size: int) -> Tensor:
        """Sample indices [size] of the positions from `position` on."""
        count = self.source.info.count
        parts = []
        while size > 0:
            epoch, offset = divmod(position, count)
            part = self._order(epoch)[offset : offset + size]
            parts.append(part)
            position, size = position + len(part), size - len(part)
        return torch.cat(parts)

    def batch(self, position: int, size: int, *, ahead: int | None = None) -> Batch:
        """Samples at `size` positions from `position`, on the device.

        Args:
            position: First position of the run.
            size: Number of samples.
            ahead: Position likely to be asked for next, read in the background.
        """
        indices = self.indices(position, size)
        if self._cache is not None:
            x, y = self._cache
            where = indices.to(x.device)
            return Batch(self.place(x[where]), None if y is None else y[where])
        batch = self._fetched(position, size, indices)
        if ahead is not None and self.workers:
            self._ahead = ((ahead, size), self._submit(self.indices(ahead, size)))
        return Batch(self.place(batch.x), None if batch.y is None else self.place(batch.y))

    def _fetched(self, position: int, size: int, indices: Tensor) -> Batch:
        ahead, self._ahead = self._ahead, None
        if not self.workers:
            return self.source.batch(indices)
        fits = ahead is not None and ahead[0] == (position, size)
        futures = ahead[1] if fits and ahead is not None else self._submit(indices)
        parts = [future.result() for future in futures]
        labels = [part.y for part in parts if part.y is not None]
        return Batch(torch.cat([part.x for part in parts]), torch.cat(labels) if labels else None)

    def _submit(self, indices: Tensor) -> list[Future[Batch]]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="advdiff-feed")
        parts = indices.chunk(self.workers)
        return [self._pool.submit(self.source.batch, part) for part in parts]

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
