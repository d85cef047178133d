"""Random numbers keyed by what they are for, so that nothing else in a recipe can change them.

A stream of a step is drawn in blocks of `BLOCK` consecutive samples of the global batch, each from
its own generator keyed by (seed, step, stream, block). A rank or a micro-batch draws just the
blocks it covers, so the numbers of a sample depend on neither world size, micro-batch size, nor on
what else is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "BLOCK",
    "Draws",
    "SampleDraws",
    "SeedDraws",
    "content_ids",
    "keyed_generator",
    "permutation",
]

BLOCK = 32


def keyed_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state depends on the words of `key` alone."""
    text = "/".join(map(str, key)).encode()
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
    return torch.Generator(device=device).manual_seed(number)


def permutation(count: int, *key: object) -> Tensor:
    """A permutation of `range(count)`, int64 [count], that depends on the words of `key` alone."""
    return torch.randperm(count, generator=keyed_generator(*key))


def content_ids(x: Tensor) -> list[int]:
    """An identity for each sample of `x` [B, ...] that its content alone decides.

    For `SampleDraws` of a metric: neither the order of the data nor the batch changes a number.
    """
    flat = x.detach().cpu().contiguous().flatten(1)
    digests = (hashlib.blake2b(row.numpy().tobytes(), digest_size=7).digest() for row in flat)
    return [int.from_bytes(digest, "big") for digest in digests]


class Draws:
    """Random numbers of one stream for the samples `[start, start + size)` of a global batch.

    Every tensor asked for has the sample axis first and `size` rows. Successive calls give fresh
    numbers; a new `Draws` with the same key begins again.

    Args:
        key: Words that name the stream, for example `(seed, step, "noise")`.
        start: Position of the first sample in the global batch.
        size: Number of samples.
        total: Size of the global batch.
        device: Where the numbers are made. Numbers differ between device types.
    """

    def __init__(
        self,
        key: tuple[object, ...],
        *,
        start: int,
        size: int,
        total: int,
        device: torch.device | str,
    ) -> None:
        self.key = key
        self.start = start
        self.size = size
        self.total = total
        self.device = torch.device(device)
        first, last = start // BLOCK, (start + size - 1) // BLOCK
        self._generators = [
            keyed_generator(*key, "block", block, device=self.device)
            for block in range(first, last + 1)
        ]
        self._offset = start - first * BLOCK

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32; `shape[0]` must be the number of samples."""
        return self._blocks(shape, lambda s, g: torch.randn(s, generator=g, device=self.device))

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers uniform in [low, high), float32; `shape[0]` must be the number of samples."""
        unit = self._blocks(shape, lambda s, g: torch.rand(s, generator=g, device=self.device))
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, shape: Sequence[int], low: int, high: int) -> Tensor:
        """Integers in [low, high), int64; `shape[0]` must be the number of samples."""
        return self._blocks(
            shape, lambda s, g: torch.randint(low, high, s, generator=g, device=self.device)
        )

    def stratified(self) -> Tensor:
        """Uniform numbers [size], float64, one in each of the `total` equal strata of [0, 1).

        Strata are dealt to the samples of the global batch by a keyed permutation, so any
        micro-batch sees all noise levels, and across ranks each stratum is used once.
        """
        deal = permutation(self.total, *self.key, "strata")[self.start : self.start + self.size]
        return (deal.to(self.device).double() + self.uniform((self.size,)).double()) / self.total

    def partners(self) -> Tensor:
        """Another sample for each, from its own block [size], int64, as rows of this stream.

        A sample is its own partner if its block holds no other. The stream has to cover whole
        blocks, since partners are the same however the global batch is cut.
        """
        last = self.start + self.size
        assert self._offset == 0, "partners need whole blocks"
        assert last % BLOCK == 0 or last == self.total, "partners need whole blocks"
        parts = []
        for number, generator in enumerate(self._generators):
            first = number * BLOCK
            count = min(BLOCK, self.size - first)
            # The draw takes the device of its generator; a turn by 1..count-1 meets nobody twice.
            turn = torch.randint(1, max(count, 2), (1,), generator=generator, device=self.device)
            rows = torch.arange(count, device=self.device)
            parts.append(first + (rows + turn) % count)
        return torch.cat(parts)

    def child(self, *words: object) -> Draws:
        """A fresh stream for the same samples, keyed by this one's key and `words`.

        Two parts of a search that draw from children of their own do not change each other.
        """
        return Draws(
            (*self.key, *words), start=self.start, size=self.size, total=self.total,
            device=self.device,
        )  # fmt: skip

    def rows(self, rows: Tensor) -> Draws:
        """This stream for some of its samples, `rows` [N]; their numbers do not change.

        The stream goes on: what is drawn for some rows is drawn from it for all of them.
        """
        return _RowsOf(self, rows)

    def generator(self) -> torch.Generator:
        """A generator for draws that have no sample axis; the same on every rank."""
        return keyed_generator(*self.key, "shared", device=self.device)

    def _blocks(self, shape: Sequence[int], make) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        shape = tuple(shape)
        assert shape[0] == self.size, f"asked for {shape[0]} samples, this stream has {self.size}"
        whole = [make((BLOCK, *shape[1:]), generator) for generator in self._generators]
        rows = whole[0] if len(whole) == 1 else torch.cat(whole)
        return rows[self._offset : self._offset + self.size]


class _RowsOf(Draws):
    """Some samples of a stream; see `Draws.rows`."""

    def __init__(self, whole: Draws, rows: Tensor) -> None:
        self.whole, self.chosen = whole, rows
        self.key, self.device = whole.key, whole.device
        self.start, self.size, self.total = 0, len(rows), len(rows)

    def child(self, *words: object) -> Draws:
        """See `Draws.child`."""
        return _RowsOf(self.whole.child(*words), self.chosen)

    def rows(self, rows: Tensor) -> Draws:
        """See `Draws.rows`."""
        return _RowsOf(self.whole, self.chosen[rows])

    def stratified(self) -> Tensor:
        """See `Draws.stratified`; the strata are those of the whole stream."""
        return self.whole.stratified()[self.chosen]

    def partners(self) -> Tensor:
        """Not for some samples alone: a partner may be missing."""
        raise NotImplementedError

    def _blocks(self, shape: Sequence[int], make) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        assert shape[0] == self.size, f"asked for {shape[0]} samples, this stream has {self.size}"
        return self.whole._blocks((self.whole.size, *shape[1:]), make)[self.chosen]


class SampleDraws(Draws):
    """Random numbers with a stream of its own for each sample, keyed by the sample's identity.

    Samples get the same numbers whatever they are batched with, in any order: an evaluation that
    goes on after a kill with the samples left repeats nothing and changes nothing.

    Args:
        key: Words that name the stream, for example `(seed, "apgd-ce")`.
        ids: Identity of each sample, for example its position in the data set.
        device: Where the numbers end up; they are always made on the CPU, so that devices agree.
    """

    def __init__(
        self, key: tuple[object, ...], ids: Sequence[int], *, device: torch.device | str = "cpu"
    ) -> None:
        self.key = key
        self.ids = tuple(ids)
        self.start, self.size, self.total = 0, len(self.ids), len(self.ids)
        self.device = torch.device(device)
        self._generators = [keyed_generator(*key, "sample", one) for one in self.ids]

    def child(self, *words: object) -> Draws:
        """See `Draws.child`."""
        return SampleDraws((*self.key, *words), self.ids, device=self.device)

    def rows(self, rows: Tensor) -> Draws:
        """See `Draws.rows`; only the streams of these samples go on."""
        chosen = object.__new__(SampleDraws)
        places = rows.tolist()
        chosen.key, chosen.device = self.key, self.device
        chosen.ids = tuple(self.ids[place] for place in places)
        chosen.start, chosen.size, chosen.total = 0, len(places), len(places)
        chosen._generators = [self._generators[place] for place in places]
        return chosen

    def stratified(self) -> Tensor:
        """Not for samples on their own: strata are shared by a batch."""
        raise NotImplementedError

    def partners(self) -> Tensor:
        """Not for samples on their own."""
        raise NotImplementedError

    def normal(self, shape: Sequence[int]) -> Tensor:
        """See `Draws.normal`."""
        return self._samples(shape, lambda s, g: torch.randn(s, generator=g))

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """See `Draws.uniform`."""
        unit = self._samples(shape, lambda s, g: torch.rand(s, generator=g))
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, shape: Sequence[int], low: int, high: int) -> Tensor:
        """See `Draws.integers`."""
        return self._samples(shape, lambda s, g: torch.randint(low, high, s, generator=g))

    def _samples(self, shape: Sequence[int], make) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
        assert shape[0] == self.size, f"asked for {shape[0]} samples, this stream has {self.size}"
        each = [make(tuple(shape[1:]), generator) for generator in self._generators]
        return torch.stack(each).to(self.device)


class SeedDraws:
    """Random numbers keyed by a seed per image: the same image in any batch.

    Args:
        seeds: One seed per image.
        stream: What the numbers are for.
        device: Where the numbers end up; they are always made on the CPU, so that devices agree.
    """

    def __init__(
        self, seeds: Sequence[int], *, stream: str = "sample", device: torch.device | str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.seeds, self.stream = tuple(seeds), stream
        self._generators = [keyed_generator("image", seed, stream) for seed in seeds]

    def child(self, *words: object) -> SeedDraws:
        """A fresh stream for the same images, keyed by this one's name and `words`."""
        stream = "/".join(map(str, (self.stream, *words)))
        return SeedDraws(self.seeds, stream=stream, device=self.device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers `shape` = [B, ...], float32, row i from the seed of image i."""
        assert shape[0] == len(self._generators)
        rows = [
            torch.randn(tuple(shape[1:]), generator=generator) for generator in self._generators
        ]
        return torch.stack(rows).to(self.device)
