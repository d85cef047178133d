"""Gradients summed over the processes while the backward that makes them goes on.

No wrapper around the networks: whatever a step runs (several forwards, gradients of inputs, several
players, frozen roles), a parameter's gradient is complete once per backward, and torch says when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch
import torch.distributed as dist
from attrs import define, field
from torch import Tensor, nn

__all__ = ["BUCKET_BYTES", "Bucketed", "buckets_of"]

#: Gradients are sent in pieces of about this size: large enough to fill a link, small enough that
#: the first leaves early.
BUCKET_BYTES = 25 * 2**20


@define(eq=False)
class _Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter]
    missing: int = 0
    flat: Tensor | None = None
    work: dist.Work | None = None

    def send(self) -> None:
        """Begin to sum: a parameter without a gradient here gets zeros."""
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.flat = torch.cat([gradient.flatten() for gradient in gradients])
        self.work = dist.all_reduce(self.flat, async_op=True)

    def receive(self) -> None:
        """Wait for the sum, and put it where the gradients are."""
        assert self.flat is not None
        assert self.work is not None
        self.work.wait()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        parts = torch.split(self.flat, [gradient.numel() for gradient in gradients])
        shaped = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)


def buckets_of(
    parameters: Sequence[nn.Parameter], *, size: int = BUCKET_BYTES
) -> list[list[nn.Parameter]]:
    """Parameters in buckets of one data type and about `size` bytes, the last ones first.

    A backward reaches them in about that order. The layout depends on the parameters alone, so it
    is the same on every process and after a resume.

    Args:
        parameters: In their order of use.
        size: Bytes at which a bucket is full.
    """
    made: list[list[nn.Parameter]] = []
    filled = 0
    for parameter in reversed(parameters):
        fits = made and made[-1][0].dtype == parameter.dtype and filled < size
        if not fits:
            made.append([])
            filled = 0
        made[-1].append(parameter)
        filled += parameter.numel() * parameter.element_size()
    return made


@define(eq=False)
class Bucketed:
    """Around a backward: sums the gradients of `parameters` over the processes, in `.grad`.

    Buckets leave in their order, each once it and those before it are complete; what the backward
    did not reach leaves at its end.

    Attributes:
        parameters: The same list on every process.
        size: Bytes of a bucket.
        reaching: Goes around what needs the other processes.
    """

    parameters: Sequence[nn.Parameter]
    size: int = BUCKET_BYTES
    reaching: Callable[[], AbstractContextManager[None]] = nullcontext
    _buckets: list[_Bucket] = field(factory=list, init=False)
    _handles: list[torch.utils.hooks.RemovableHandle] = field(factory=list, init=False)
    _sent: int = field(default=0, init=False)

    def __enter__(self) -> Bucketed:
        self._sent = 0
        made = buckets_of(self.parameters, size=self.size)
        self._buckets = [_Bucket(group, len(group)) for group in made]
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                hook = self._told(bucket)
                handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                self._handles.append(handle)
        return self

    def _told(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def complete(_: Tensor) -> None:
            bucket.missing -= 1
            self._send_ready()

        return complete

    def _send_ready(self) -> None:
        while self._sent < len(self._buckets) and self._buckets[self._sent].missing <= 0:
            with self.reaching():
                self._buckets[self._sent].send()
            self._sent += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if error is not None:
            return
        with self.reaching():
            for bucket in self._buckets[self._sent :]:
                bucket.send()
            for bucket in self._buckets:
                bucket.receive()
        self._buckets = []
