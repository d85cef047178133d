"""The seam to torch.distributed: rank, gradient sync, agreement. One process needs no group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist
from attrs import field, frozen
from torch import Tensor, nn

from advdiff_core.engine.buckets import Bucketed
from advdiff_core.engine.peers import Peers, joined
from advdiff_core.engine.ranks import Ranks
from advdiff_core.engine.sharding import is_sharded
from advdiff_core.errors import UsageError

__all__ = ["World", "joined_world"]


@frozen(kw_only=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
        peers: How they reach each other; None where a caller has joined them, or alone.
    """

    rank: int = 0
    size: int = 1
    peers: Peers | None = field(default=None, eq=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the process that writes files and speaks."""
        return self.rank == 0

    @property
    def ranks(self) -> Ranks:
        """The processes as those who succeed or fail together."""
        return Ranks(rank=self.rank, world=self.size, gather=self.gather)

    def share(self, batch: int) -> tuple[int, int]:
        """First row and number of rows of this process in a global batch.

        Raises:
            UsageError: If there are fewer samples than processes.
        """
        if batch < self.size:
            message = f"a batch of {batch} cannot be shared by {self.size} processes"
            raise UsageError(message, where="run.batch", fix="raise run.batch or start fewer")
        first, last = self._edge(batch, self.rank), self._edge(batch, self.rank + 1)
        return first, last - first

    def part(self, count: int) -> slice:
        """The places of this process among `count` things, each with one process; maybe none."""
        return slice(self._edge(count, self.rank), self._edge(count, self.rank + 1))

    def _edge(self, count: int, rank: int) -> int:
        return count * rank // self.size

    @contextmanager
    def syncing(self, parameters: Sequence[nn.Parameter], *, wanted: bool = True) -> Iterator[None]:
        """Around the last backward of an update: gradients are summed over the processes.

        Sums run while the backward goes on, and are complete afterwards. Missing gradients count as
        zero. Every process reduces the same buckets in the same order, so that none waits for a
        gradient another does not have.

        Args:
            parameters: What gets gradients; those that are shared out see to themselves.
            wanted: False for a backward that others follow before the update.
        """
        if self.size == 1 or not wanted:
            yield
            return
        plain = [parameter for parameter in parameters if not is_sharded(parameter)]
        with Bucketed(plain, reaching=self.reaching):
            yield

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor], batch: int) -> None:
        """Make tensors their mean over the processes, in place, by the samples each has.

        Args:
            tensors: Floating tensors, the same ones on every process.
            batch: Global batch.
        """
        if self.size == 1 or not tensors:
            return
        weight = self.share(batch)[1] / batch
        flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors]) * weight
        with self.reaching():
            dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small tensor of any shape over the processes."""
        if self.size > 1:
            values = values.clone()
            with self.reaching():
                dist.all_reduce(values)
        return values

    def rows(self, values: Tensor, batch: int, *, patient: bool = False) -> Tensor:
        """Rows of a global batch [batch, ...] from each process's share [B, ...], in its order.

        The share is that of `share`, or of `part` where some processes may have none.

        Args:
            values: Rows of this process; on the CPU, if `patient`.
            batch: Rows of all.
            patient: Wait as long as it takes, not for the seconds that a step may take.
        """
        if self.size == 1:
            return values
        edges = [self._edge(batch, rank) for rank in range(self.size + 1)]
        shares = [high - low for low, high in pairwise(edges)]
        padded = values.new_zeros((max(shares), *values.shape[1:]))
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in shares]
        with self.reaching():
            dist.all_gather(found, padded, group=self._patient if patient else None)
        return torch.cat([part[:share] for part, share in zip(found, shares, strict=True)])

    def all(self, flag: bool) -> bool:
        """True if the flag is true on every process."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        with self.reaching():
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return bool(votes.item())

    def any(self, flag: bool) -> bool:
        """True if the flag is true on at least one process."""
        return not self.all(not flag)

    def gather(self, text: str) -> list[str]:
        """The texts of all processes in order of rank, on every process; also a barrier.

        It waits as long as it takes: what comes before it may be long work of one process.
        """
        if self.size == 1:
            return [text]
        group = self._patient
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self.reaching():
            dist.all_gather(lengths, torch.tensor([len(text.encode())]), group=group)
            width = max(int(length.item()) for length in lengths) or 1
            padded = torch.zeros(width, dtype=torch.uint8)
            padded[: len(data)] = data[:width]
            rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(rows, padded, group=group)
        return [
            row[: int(length.item())].numpy().tobytes().decode()
            for row, length in zip(rows, lengths, strict=True)
        ]

    def barrier(self) -> None:
        """Wait for every process, as long as it takes."""
        self.gather("")

    @property
    def _patient(self) -> dist.ProcessGroup | None:
        """The group that waits for long work of one process."""
        return None if self.peers is None else self.peers.patient

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Around what needs the others.

        Raises:
            LostPeerError: If one of them is gone or does not answer, naming it.
        """
        try:
            yield
        except RuntimeError as cause:
            if self.peers is None:
                raise
            raise self.peers.lost(cause) from cause


@contextmanager
def joined_world(*, timeout_s: float = 300.0) -> Iterator[World]:
    """Join the processes that a launcher announces in the environment; alone without one.

    Args:
        timeout_s: Seconds that training waits for a silent process.

    Raises:
        LostPeerError: If they cannot be joined.
    """
    with joined(timeout_s=timeout_s) as peers:
        if peers is not None:
            yield World(rank=peers.rank, size=peers.size, peers=peers)
        elif dist.is_initialized():
            yield World(rank=dist.get_rank(), size=dist.get_world_size())
        else:
            yield World()
