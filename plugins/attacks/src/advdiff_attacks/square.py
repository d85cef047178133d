"""Square: random search with windows, which asks for outputs alone."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.buckets import BUCKET, Buckets, remaining, settled
from advdiff_attacks.objectives import Objective, objective_of
from advdiff_attacks.square_moves import Move, State, move_of
from advdiff_attacks.square_plan import as_images, windows
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["Square"]


class Square(Attack):
    """Random search over windows of the image, without gradients (Andriushchenko et al. 2020).

    Climbs the margin of the logits, or the victim's loss where there are no labels. Windows are the
    same for all samples; a proposal is kept for the samples that it helps. An image is changed in
    place and changed back where that did not help, so that a query costs a forward and next to
    nothing else.
    """

    @settings
    class Settings:
        """Keys of `use = "square"`."""

        queries: int = setting(5000, ge=0, help="windows tried in a restart")
        restarts: int = setting(1, ge=1, help="random starts")
        share: float = setting(0.8, gt=0, le=1, help="share of pixels in the first windows")
        rescale: bool = setting(
            False, help="stretch the schedule of window sizes, made for 10,000 queries, to queries"
        )
        bucket: int = setting(0, ge=0, help=BUCKET)
        interval: int = setting(
            10, ge=0, help="queries between drops of broken samples; 0 keeps all"
        )

    settings: Any

    def objective(self, victim: Victim, clean: Tensor) -> Objective:
        """See `Attack.objective`."""
        return objective_of(victim, "margin", clean)

    def cost(self) -> SearchCost:
        """One forward per query, one at each start, and one at the clean inputs."""
        return SearchCost(self.settings.restarts * (self.settings.queries + 1) + 1, 0)

    @torch.no_grad()
    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        clean = victim.outputs(x)
        best = Best(x, self.objective(victim, clean)(clean), settled(victim, clean))
        radius = torch.as_tensor(budget.radius).to(x)
        for restart in range(self.settings.restarts):
            rows, part = remaining(victim, best.broken)
            if not len(rows):
                break
            draws = rng.child("restart", restart).rows(rows)
            state = self._run(part, x[rows], budget._replace(radius=radius[rows]), domain, draws)
            loss = state.best.masked_fill(best.broken[rows], -torch.inf)
            best.update(state.point.reshape(x[rows].shape), loss, state.broken, rows)
        return best.x

    def _run(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, draws: Draws
    ) -> State:
        """One restart; its state for all samples."""
        s = self.settings
        images = as_images(x)
        plan = windows(
            (images.shape[1], images.shape[2], images.shape[3]), s.queries,
            share=s.share, rescale=s.rescale, bumpy=budget.norm != "linf", draws=draws,
        )  # fmt: skip
        move = move_of(budget.norm, plan, domain)
        state = move.start(images, torch.as_tensor(budget.radius), draws)
        whole = state.rows(slice(0, len(images)))
        buckets = Buckets(victim, len(x), x.device, size=s.bucket)
        front = _parts(buckets, state)
        for query in range(-1, s.queries):
            for part in front:
                part.ask(move, query, x.shape[1:])
            if s.interval and (query + 1) % s.interval == 0:
                state, before = _drop(buckets, state, whole), state
                if not len(state.x):
                    return whole
                front = front if state is before else _parts(buckets, state)
        whole.put(buckets.rows, state)
        return whole


@attrs.frozen
class _Part:
    """Samples that are attacked together: their victim, its margin, and views of their state."""

    victim: Victim
    margin: Objective
    state: State

    def ask(self, move: Move, query: int, shape: torch.Size) -> None:
        """Try a window (none at query -1); a broken sample stays where it was broken."""
        state = self.state
        kept = move.propose(state, query) if query >= 0 else None
        outputs = self.victim.outputs(state.point.reshape(-1, *shape))
        loss, broken = self.margin(outputs), settled(self.victim, outputs)
        better = ((loss > state.best) | broken).logical_and_(~state.broken)
        torch.where(better, loss, state.best, out=state.best)
        state.broken.logical_or_(broken)
        if kept is not None:
            move.settle(state, query, kept, better)


def _parts(buckets: Buckets, state: State) -> list[_Part]:
    return [
        _Part(part, objective_of(part, "margin"), state.rows(span)) for span, part in buckets.parts
    ]


def _drop(buckets: Buckets, state: State, whole: State) -> State:
    """Go on without the samples that are broken."""
    rows = buckets.rows
    places = buckets.keep(~state.broken)
    if places is None:
        return state
    whole.put(rows, state)
    return state.rows(places)
