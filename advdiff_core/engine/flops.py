"""Floating-point operations of a training step, from the plan and the size of each network.

The convention of Chowdhery et al. (2022, "PaLM", appendix B): only what a model itself needs is
counted, so that recomputed activations do not look like useful work. A multiply-accumulate is two
operations. A forward counts once, a backward towards the input once more, and one towards
parameters twice: the products with the weights and those with the activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.size import macs_of
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.step.plan import Plan, StepCost, rehearse

__all__ = ["MAX_CYCLE", "flops_of", "flops_per_image", "role_macs", "step_cost"]

#: Longest cycle of `every` settings that an average is taken over.
MAX_CYCLE = 240
#: Forwards that a pass is worth.
WORTH = {"forward": 1, "input": 1, "parameter": 2}


def step_cost(
    experiment: Experiment, *, index: int = 0, nimg: int | None = None, share: bool = True
) -> StepCost:
    """Passes of step `index`; with `nimg` given, of the terms active then.

    Args:
        experiment: The objects of the run.
        index: Number of the step.
        nimg: Images seen before it; None for a step in which all terms are active.
        share: Whether phases share graphs (they do unless the batch is split in micro-batches).
    """
    due = [
        player.name
        for player in experiment.players
        if index % player.every == 0 and (nimg is None or player.due(index, nimg))
    ]
    whole = StepCost()
    for plan in _plans(experiment, nimg):
        cost = rehearse(plan, due, share=share)
        whole.queries += cost.queries
        for way, count in cost.passes.items():
            whole.passes[way] += count
        for role, passes in cost.roles.items():
            whole.add(role, passes)
    return whole


def _plans(experiment: Experiment, nimg: int | None) -> Sequence[Plan]:
    """Those of the run, or, while some terms are not active, those of the others."""
    players, scene = experiment.players, experiment.scene
    if nimg is None or all(term.active(nimg) for one in players for term in one.terms):
        return (experiment.plan, *experiment.fresh_plans.values())
    shared = Plan([one.phase(nimg) for one in players if not one.fresh], scene)
    return (shared, *(Plan([one.phase(nimg)], scene) for one in players if one.fresh))


def flops_per_image(
    experiment: Experiment, *, nimg: int | None = None, share: bool = True
) -> float | None:
    """Operations per image of training, on average over steps with and without each player.

    Args:
        experiment: The objects of the run.
        nimg: Images seen, for the terms active then; None for all of them.
        share: See `step_cost`.

    Returns:
        The count; None if the operations of a network cannot be counted.
    """
    cycle = min(math.lcm(*(player.every for player in experiment.players)), MAX_CYCLE)
    known: dict[tuple[str, str | None], int | None] = {}
    found = [
        flops_of(experiment, step_cost(experiment, index=index, nimg=nimg, share=share), known)
        for index in range(cycle)
    ]
    counts = [one for one in found if one is not None]
    return sum(counts) / cycle if len(counts) == cycle else None


def flops_of(
    experiment: Experiment,
    cost: StepCost,
    known: dict[tuple[str, str | None], int | None] | None = None,
) -> float | None:
    """Operations per image of a step with these passes.

    Args:
        experiment: The objects of the run.
        cost: The passes.
        known: Multiply-accumulates by role and tap; what is missing is counted and added.

    Returns:
        The count; None if the operations of a network cannot be counted.
    """
    macs = {} if known is None else known
    total = 0.0
    for way, count in cost.passes.items():
        key = (way.role, way.stop_at)
        if key not in macs:
            macs[key] = role_macs(experiment, *key)
        each = macs[key]
        if count and each is None:
            return None
        total += 2.0 * WORTH[way.kind] * count * (each or 0)
    return total


def role_macs(experiment: Experiment, name: str, stop_at: str | None = None) -> int | None:
    """Multiply-accumulates of the forward of one sample by a role; see `size.macs_of`.

    Args:
        experiment: The objects of the run.
        name: The role.
        stop_at: Tap at which a backbone stops; None for the whole forward.
    """
    role = experiment.scene.roles[name]
    told = cast("ModuleComponent", role.module).build.data
    data, levels = told or experiment.source.info, role.wear is not None
    network = role.module if role.skeleton is None else role.skeleton
    return macs_of(network, role.info.kind, data, levels=levels, stop_at=stop_at)
