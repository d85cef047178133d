"""One run of auto-PGD over a batch, in parts."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from advdiff_attacks.apgd_moves import Move
from advdiff_attacks.apgd_state import State, checkpoints
from advdiff_attacks.buckets import Buckets, settled
from advdiff_attacks.objectives import Objective
from advdiff_core import Victim

__all__ = ["Found", "Plan", "run"]


@attrs.frozen
class Plan:
    """How a run goes.

    Attributes:
        move: Steps of the norm.
        objective: The loss to climb, of a victim and the classes [N] aimed at.
        steps: Number of steps.
        eot: Forward passes at each point, over which loss and gradient are averaged.
        bucket: Samples in a part; see `Buckets`.
        interval: Steps between drops of broken samples; 0 keeps all.
        sparse: Whether checkpoints are those of L1.
    """

    move: Move
    objective: Callable[[Victim, Tensor], Objective]
    steps: int
    eot: int
    bucket: int
    interval: int
    sparse: bool


@attrs.frozen
class Found:
    """What a run found, for all samples that it was given.

    Attributes:
        broken: Which samples were broken [N], bool.
        adversarial: The first points that broke them [N, ...]; the clean ones elsewhere.
        best: Points of largest loss [N, ...].
        loss: The loss there [N].
    """

    broken: Tensor
    adversarial: Tensor
    best: Tensor
    loss: Tensor


def run(plan: Plan, victim: Victim, state: State, *, resumed: bool = False) -> Found:
    """Search from the points of `state` on; `resumed` where another search found them.

    Trajectories of samples do not depend on each other, so that dropping some changes nothing.
    """
    buckets = Buckets(victim, len(state.x), state.x.device, size=plan.bucket)
    found = Found(
        state.broken.clone(), state.x.clone(), state.point.clone(), state.best_loss.clone()
    )
    looks = checkpoints(plan.steps, sparse=plan.sparse)
    _measure_all(plan, buckets, state, last=plan.steps == 0)
    plan.move.begin(state, resumed=resumed)
    for index in range(plan.steps):
        for span, part in buckets.parts:
            plan.move.move(rows := state.rows(span), index)
            _measure(plan, part, rows, last=index + 1 == plan.steps)
        if index + 1 in looks:
            plan.move.check(state, looks[index + 1])
        if plan.interval and (index + 1) % plan.interval == 0:
            state = _drop(buckets, state, found)
            if not len(state.x):
                return found
    _put(buckets.rows, state, found)
    return found


def _measure_all(plan: Plan, buckets: Buckets, state: State, *, last: bool) -> None:
    for span, part in buckets.parts:
        _measure(plan, part, state.rows(span), last=last)
    state.rises.zero_()


def _measure(plan: Plan, victim: Victim, state: State, *, last: bool) -> None:
    """Evaluate the points of `state`, views of a part, and keep what is better; in place."""
    loss, gradient, broken = _evaluate(plan, victim, state, last=last)
    if gradient is not None:
        state.gradient.copy_(gradient)
    state.put(broken & ~state.broken, found=state.point)
    state.broken.logical_or_(broken)
    better = loss > state.best_loss
    state.put(better, best=state.point, best_gradient=state.gradient, best_loss=loss)
    state.rises.add_(loss > state.loss)
    state.loss.copy_(loss)


def _evaluate(
    plan: Plan, victim: Victim, state: State, *, last: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Loss [N], gradient [N, ...] (None at the last point) and verdicts [N] of `plan.eot` passes.

    A random victim counts as beaten where most passes are.
    """
    climb = plan.objective(victim, state.target)
    passes = [_pass(climb, victim, state.point, last=last) for _ in range(plan.eot)]
    losses, gradients, verdicts = zip(*passes, strict=True)
    if plan.eot == 1:
        return losses[0], gradients[0], verdicts[0]
    gradient = None if last else torch.stack(gradients).mean(0)
    most = torch.stack(verdicts).sum(0) * 2 > plan.eot
    return torch.stack(losses).mean(0), gradient, most


def _pass(
    climb: Objective, victim: Victim, point: Tensor, *, last: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    at = point.detach()
    with torch.set_grad_enabled(not last):
        outputs = victim.outputs(at if last else at.requires_grad_())
        loss = climb(outputs)
    gradient = None if last else torch.autograd.grad(loss.sum(), at)[0]
    return loss.detach(), gradient, settled(victim, outputs.detach())


def _drop(buckets: Buckets, state: State, found: Found) -> State:
    """Go on without the samples that are broken."""
    rows = buckets.rows
    places = buckets.keep(~state.broken)
    if places is None:
        return state
    _put(rows, state, found)
    return state.rows(places)


def _put(rows: Tensor, state: State, found: Found) -> None:
    found.broken[rows] = state.broken
    found.adversarial[rows] = state.found
    found.best[rows] = state.best
    found.loss[rows] = state.best_loss
