"""Laws of attacks that compare what is found with the clean point, or one search with another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.attack import Attack
from advdiff_core.testing.bench import World, batch_of, draws, seeds
from advdiff_core.testing.compare import same_values
from advdiff_core.testing.findings import Finding, NotApplicable, shown, wrong
from advdiff_core.testing.kinds.attack_rig import (
    LAWS,
    classes,
    image_budgets,
    known_to,
    law,
    made,
    run,
)
from advdiff_core.testing.kinds.rigs import worlds
from advdiff_core.testing.subject import Subject
from advdiff_core.testing.victims import ClassifierVictim, WholeVictim
from advdiff_core.types import Budget

__all__ = ["LAWS"]


@law("never-worse-than-clean", world=worlds, seed=seeds(), budget=image_budgets, num=classes)
def never_worse_than_clean(
    subject: Subject, world: World, seed: int, budget: Budget, num: int
) -> None:
    """No sample is better off than at the clean point: by verdict, then by the own objective.

    Attacks that return where they ended (`keeps_best` is False) promise no such thing.
    """
    attack, x = made(subject, world), batch_of(world, seed, 6).x.double()
    if not attack.keeps_best:
        message = "it returns where it ended, not the best it saw"
        raise NotApplicable(message)
    victim = ClassifierVictim(world, classes=num, size=6)
    victim.net.double()
    found = run(attack, victim, x, budget, world, seed)
    with torch.no_grad():
        clean, after = victim.outputs(x), victim.outputs(found)
    was, now = victim.y != clean.argmax(1), victim.y != after.argmax(1)
    if bool((was & ~now).any()):
        raise _better_off(f"{int((was & ~now).sum())} of 6 samples beaten at the clean point alone")
    objective = attack.objective(victim, clean)
    if objective is None:
        return
    before, then = objective(clean), objective(after)
    # What `run` rounds when it projects may cost the last digits.
    drop = ((before - then - 1e-6 * (1 + before.abs())) * (was == now)).max()
    if float(drop) > 0:
        raise _better_off(
            f"an objective that is {shown(float(drop))} below that of the clean point"
        )


def _better_off(found: str) -> Finding:
    return wrong(
        found,
        wanted="no sample better off than at the clean point",
        mend="begin with the clean point as the best one, and compare each point with it",
    )


@law("takes-victims-apart-or-not", world=worlds, seed=seeds(), budget=image_budgets)
def takes_victims_apart_or_not(subject: Subject, world: World, seed: int, budget: Budget) -> None:
    """Where samples cannot be left out, it finds what it finds where they can."""
    attack, x = made(subject, world), batch_of(world, seed, 4).x.double()
    victim = ClassifierVictim(world, classes=3, size=4)
    victim.net.double()
    same_values(
        run(attack, WholeVictim(victim), x, budget, world, seed),
        run(attack, victim, x, budget, world, seed),
        what="inputs found for a victim that cannot be taken apart against one that can",
        rtol=1e-6,
        mend="leave settled samples where they are, be they taken out or not",
    )


@law("members-find-the-same", world=worlds, seed=seeds(), budget=image_budgets)
def members_find_the_same(subject: Subject, world: World, seed: int, budget: Budget) -> None:
    """Its members, run in turn on the samples left, break just what the whole attack breaks."""
    attack, x = made(subject, world), batch_of(world, seed, 8).x.double()
    members = attack.members()
    if not members:
        message = "it has no members"
        raise NotApplicable(message)
    victim = ClassifierVictim(world, classes=5, size=8, linear=True)
    victim.net.double()
    # All are classified rightly, so that members have something to break.
    victim.y = victim.outputs(x).argmax(1)
    turns = x.clone()
    left = torch.ones(8, dtype=torch.bool)
    for name, member in members.items():
        if bool(left.any()):
            turns, left = _turn(member, name, victim, x, turns, left, budget, world, seed)
    whole = run(attack, victim, x, budget, world, seed)
    broken = victim.outputs(whole).argmax(1) != victim.y
    if not torch.equal(broken, ~left):
        raise wrong(
            f"{int(broken.sum())} samples broken by the whole, {int((~left).sum())} by its members",
            wanted="the same ones",
            mend="let search run members() in turn, each drawing from rng.child(its name)",
        )


def _turn(  # noqa: PLR0913 - the coordinates of an attack.
    member: Attack, name: str, victim: ClassifierVictim, x: Tensor, turns: Tensor, left: Tensor,
    budget: Budget, world: World, seed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run a member on the samples `left` [B]; what it breaks, and what is left then."""
    rows = left.nonzero().squeeze(1)
    rng = draws(seed, x.shape[0]).child(name).rows(rows)
    part = victim.rows(rows)
    found = member.run(part, x[rows], known_to(member, budget), domain=world.data.domain, rng=rng)
    beaten = part.outputs(found).argmax(1) != part.y
    turns = turns.index_copy(0, rows[beaten], found[beaten])
    return turns, left.index_fill(0, rows[beaten], value=False)


@law("refuses-unknown-norms", world=worlds, seed=seeds())
def refuses_unknown_norms(subject: Subject, world: World, seed: int) -> None:
    """A norm that it cannot search in is refused, naming those it can."""
    attack, x = made(subject, world), batch_of(world, seed, 1).x
    victim = ClassifierVictim(world, classes=3, size=1)
    unknown: Any = next((n for n in ("l1", "l2", "linf") if n not in attack.norms), "l7")
    try:
        attack.run(
            victim,
            x,
            Budget(unknown, 0.1, "image"),
            domain=None,
            rng=draws(seed, 1),
        )
    except ContractError as refusal:
        if all(known in str(refusal) for known in attack.norms):
            return
    raise wrong(
        f"no refusal of a search in {unknown} that names {', '.join(attack.norms)}",
        wanted="a ContractError",
        mend="list in `norms` what it can search in, and leave `run` to the core",
    )
