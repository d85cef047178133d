"""The seam to torch.distributed: rank, gradient sync, agreement. One process needs no group."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.errors import AdvdiffError, UsageError

__all__ = ["World", "joined_world"]


@frozen(kw_only=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """True on the process that writes files and speaks."""
        return self.rank == 0

    def share(self, batch: int) -> tuple[int, int]:
        """First row and number of rows of this process in a global batch.

        Raises:
            UsageError: If there are fewer samples than processes.
        """
        if batch < self.size:
            message = f"a batch of {batch} cannot be shared by {self.size} processes"
            raise UsageError(message, where="run.batch", fix="raise run.batch or start fewer")
        edges = [batch * rank // self.size for rank in range(self.size + 1)]
        return edges[self.rank], edges[self.rank + 1] - edges[self.rank]

    def sync_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum gradients over the processes, one flat all-reduce a dtype.

        Missing gradients count as zero.

        Every process reduces the same fixed list, so that none waits for a gradient another does
        not have.
        """
        if self.size == 1:
            return
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            group = [p for p in parameters if p.dtype == dtype]
            for p in group:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = torch.cat([p.grad.flatten() for p in group if p.grad is not None])
            dist.all_reduce(flat)
            offset = 0
            for p in group:
                assert p.grad is not None
                p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
                offset += p.numel()

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small tensor of any shape over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def rows(self, values: Tensor, batch: int) -> Tensor:
        """Rows of a global batch [batch, ...] from each process's share [B, ...], in its order."""
        if self.size == 1:
            return values
        shares = [World(rank=rank, size=self.size).share(batch)[1] for rank in range(self.size)]
        padded = values.new_zeros((max(shares), *values.shape[1:]))
        padded[: len(values)] = values
        found = [torch.empty_like(padded) for _ in shares]
        dist.all_gather(found, padded)
        return torch.cat([part[:share] for part, share in zip(found, shares, strict=True)])

    def all(self, flag: bool) -> bool:
        """True if the flag is true on every process."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MIN)
        return bool(votes.item())

    def any(self, flag: bool) -> bool:
        """True if the flag is true on at least one process."""
        return not self.all(not flag)

    def gather(self, text: str) -> list[str]:
        """The texts of all processes in order of rank, on every process; also a barrier."""
        if self.size == 1:
            return [text]
        data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text.encode())]))
        width = max(int(length.item()) for length in lengths) or 1
        padded = torch.zeros(width, dtype=torch.uint8)
        padded[: len(data)] = data[:width]
        rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(rows, padded)
        return [
            bytes(row[: int(length.item())].tolist()).decode()
            for row, length in zip(rows, lengths, strict=True)
        ]

    def barrier(self) -> None:
        """Wait for every process."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined_world(*, timeout_s: float = 120.0) -> Iterator[World]:
    """Join the process group that torchrun announces in the environment; alone without one.

    Args:
        timeout_s: Seconds a collective waits for a silent process.

    Raises:
        AdvdiffError: If the group cannot be joined.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size <= 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield World(rank=rank, size=dist.get_world_size() if dist.is_initialized() else 1)
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as cause:
        message = f"cannot join {size} processes at {os.environ.get('MASTER_ADDR')}: {cause}"
        raise AdvdiffError(message, code="X08", fix="start with torchrun") from cause
    try:
        yield World(rank=dist.get_rank(), size=dist.get_world_size())
    finally:
        dist.destroy_process_group()
