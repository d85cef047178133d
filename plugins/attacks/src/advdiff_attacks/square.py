"""Square: random search with windows, which asks for outputs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.buckets import Buckets, remaining, settled
from advdiff_attacks.objectives import Objective, objective_of
from advdiff_attacks.square_moves import State, move_of
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
        bucket: int = setting(
            0, ge=0, help="samples attacked together; 0: 64 on a CPU, 512 elsewhere"
        )
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
        for query in range(-1, s.queries):
            for span, part in buckets.parts:
                rows = state.rows(span)
                kept = move.propose(rows, query) if query >= 0 else None
                better = _judge(part, rows, x.shape[1:])
                if kept is not None:
                    move.settle(rows, query, kept, better)
            if s.interval and (query + 1) % s.interval == 0:
                state = _drop(buckets, state, whole)
                if not len(state.x):
                    return whole
        whole.put(buckets.rows, state)
        return whole


def _judge(victim: Victim, state: State, shape: torch.Size) -> Tensor:
    """Which samples [N] are better off at their points; their loss and verdict are noted.

    A broken sample stays where it was broken.
    """
    outputs = victim.outputs(state.point.reshape(-1, *shape))
    loss, broken = objective_of(victim, "margin")(outputs), settled(victim, outputs)
    better = ((loss > state.best) | broken) & ~state.broken
    torch.where(better, loss, state.best, out=state.best)
    state.broken.logical_or_(broken)
    return better


def _drop(buckets: Buckets, state: State, whole: State) -> State:
    """Go on without the samples that are broken."""
    rows = buckets.rows
    places = buckets.keep(~state.broken)
    if places is None:
        return state
    whole.put(rows, state)
    return state.rows(places)
