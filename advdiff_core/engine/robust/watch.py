"""A victim that is watched: what an attack asks is counted, what it saw is remembered."""

from __future__ import annotations

import torch
from attrs import define, field
from torch import Tensor

from advdiff_core.interfaces.attack import Victim
from advdiff_core.math import norms
from advdiff_core.types import Domain, Norm

__all__ = ["Tally", "Watched"]


@define(kw_only=True, eq=False)
class Tally:
    """What was seen of one search.

    Attributes:
        seen: Samples that were broken inside the budget at some point [B], bool.
        forwards: Forwards of single samples.
        gradients: Gradients of single samples that reached the input.
        drew: True if the network itself draws from torch's global generator.
    """

    seen: Tensor
    forwards: int = 0
    gradients: int = 0
    drew: bool = field(default=False)


class Watched:
    """See `advdiff_core.interfaces.attack.Victim`; everything is passed on.

    Args:
        victim: The victim of the samples `x`.
        x: Clean inputs [B, ...].
        norm: Norm of the budget.
        limit: Largest norm that is inside it, rounding included.
        domain: Valid range of inputs, or None.
        tally: Where it is counted.
        index: Rows of the tally that the samples are [B]; all of them if None.
    """

    def __init__(  # noqa: PLR0913 - a victim and its budget.
        self,
        victim: Victim,
        x: Tensor,
        *,
        norm: Norm,
        limit: float,
        domain: Domain | None = None,
        tally: Tally,
        index: Tensor | None = None,
    ) -> None:
        self.victim, self.x, self.tally = victim, x, tally
        self.norm, self.limit, self.domain = norm, limit, domain
        self.index = torch.arange(len(x), device=x.device) if index is None else index

    @property
    def labels(self) -> Tensor | None:
        """True classes [B], or None."""
        return self.victim.labels

    def rows(self, rows: Tensor) -> Watched | None:
        """The same for the samples `rows` [N], counted together."""
        part = self.victim.rows(rows)
        if part is None:
            return None
        return Watched(
            part, self.x[rows], norm=self.norm, limit=self.limit, domain=self.domain,
            tally=self.tally, index=self.index[rows],
        )  # fmt: skip

    def outputs(self, x: Tensor) -> Tensor:
        """Outputs at `x` [B, ...], counted."""
        self.tally.forwards += len(x)
        seen = x
        if x.requires_grad:
            seen = x.view_as(x)
            seen.register_hook(self._reached)  # type: ignore[no-untyped-call]
        state = torch.get_rng_state()
        outputs = self.victim.outputs(seen)
        self.tally.drew |= not torch.equal(state, torch.get_rng_state())
        self._look(x.detach(), outputs.detach())
        return outputs

    def loss(self, outputs: Tensor) -> Tensor:
        """The objective [B] of `outputs` [B, ...]."""
        return self.victim.loss(outputs)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Which samples of `outputs` [B, ...] are beaten [B]."""
        return self.victim.broken(outputs)

    @torch.no_grad()
    def _look(self, x: Tensor, outputs: Tensor) -> None:
        """Note which samples are broken here, inside the budget."""
        if x.shape != self.x.shape:
            return
        broken = self.victim.broken(outputs)
        if broken is not None:
            inside = norms.norm(x - self.x, self.norm) <= self.limit
            if self.domain is not None:
                flat, room = x.flatten(1), 1e-6 * self.domain.span
                inside &= flat.amin(1) >= self.domain.low - room
                inside &= flat.amax(1) <= self.domain.high + room
            self.tally.seen[self.index] |= broken & inside

    def _reached(self, gradient: Tensor) -> None:
        self.tally.gradients += len(gradient)
