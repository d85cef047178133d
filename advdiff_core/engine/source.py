"""A dataset as a run sees it: in the run's domain, corrupted, checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core.errors import DataError
from advdiff_core.interfaces.dataset import Corruption, Dataset
from advdiff_core.types import Batch, Domain, Subspace

__all__ = ["SAMPLE_CHECK", "BadSamples", "Source"]

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

    Attributes:
        info: Description of the samples.
        pictures: Description of what `decode` makes of them; `info` where they are shown as they
            are.
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
        self.info = evolve(native, domain=self.domain, subspace=self._subspace(native.subspace))
        self.pictures = dataset.pictures or self.info
        self.skipped: set[int] = set()

    def _subspace(self, native: Subspace | None) -> Subspace | None:
        """The subspace of the data in the run's domain: the conversion moves its origin alone."""
        if native is None or self.native is None or self.domain is None:
            return native
        unit = (native.origin - self.native.low) / self.native.span
        return evolve(native, origin=self.domain.low + unit * self.domain.span)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the data, made once: a run asks for it several times, and it reads them."""
        return self.dataset.fingerprint()

    def decode(self, x: Tensor) -> Tensor:
        """Samples [B, ...] as pictures; see `Dataset.decode`."""
        return self.dataset.decode(x)

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
