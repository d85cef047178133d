"""Taps by the path of a module, for networks that were written without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from attrs import define, field
from torch import Tensor, nn

__all__ = ["HookedTaps", "Stopped", "first_tensor", "last_tensor"]

#: Picks the tensor that a tap shows out of what a module returns.
Pick = Callable[[Any], Tensor]


class Stopped(Exception):  # noqa: N818 - no error: the way out of a network.
    """The tap at which a forward was told to stop has been reached."""


@define(eq=False)
class HookedTaps:
    """What the hooks of one network catch while it runs.

    Attributes:
        wanted: Taps to catch; none outside of `catching`.
        stop_at: Tap after which the forward ends.
        found: What was caught.
    """

    wanted: frozenset[str] = frozenset()
    stop_at: str | None = None
    found: dict[str, Tensor] = field(factory=dict)

    def attach(self, net: nn.Module, picks: Mapping[str, Pick]) -> None:
        """Hook the modules at these paths of `net`.

        Args:
            net: The network.
            picks: What to take of a module's output, by its path.
        """
        modules = dict(net.named_modules())
        for path, pick in picks.items():
            modules[path].register_forward_hook(_Catch(path, pick, self))

    @contextmanager
    def catching(self, wanted: tuple[str, ...], stop_at: str | None) -> Iterator[dict[str, Tensor]]:
        """Catch what `wanted` names while the body runs, and raise `Stopped` at `stop_at`.

        A backward that recomputes blocks comes later: it finds nothing wanted.
        """
        found: dict[str, Tensor] = {}
        self.wanted, self.stop_at, self.found = frozenset(wanted), stop_at, found
        try:
            yield found
        finally:
            self.wanted, self.stop_at, self.found = frozenset(), None, {}


@define(eq=False)
class _Catch:
    """A forward hook. An object and no function, so that copies of the network have their own."""

    path: str
    pick: Pick
    taps: HookedTaps

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Keep the output if it is wanted."""
        del module, inputs
        if self.path in self.taps.wanted:
            self.taps.found[self.path] = self.pick(output)
        if self.path == self.taps.stop_at:
            raise Stopped


def first_tensor(output: Any) -> Tensor:
    """The output [B, ...] itself, or the first of several."""
    made: Tensor = output if isinstance(output, Tensor) else output[0]
    return made


def last_tensor(output: Any) -> Tensor:
    """The output [B, ...] itself, or the last of several."""
    made: Tensor = output if isinstance(output, Tensor) else output[-1]
    return made
