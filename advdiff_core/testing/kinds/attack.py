"""Laws of attacks, on small classifiers of 2, 3 and 1000 classes and on a regressor."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.attack import Attack
from advdiff_core.math import norms
from advdiff_core.testing.bench import World, batch_of, draws, seeds, sizes
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds import attack_verdicts
from advdiff_core.testing.kinds.attack_rig import classes, image_budgets, known_to, law, made, run
from advdiff_core.testing.kinds.rigs import worlds
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject
from advdiff_core.testing.victims import ClassifierVictim, CountingVictim, RegressorVictim
from advdiff_core.types import Budget, Norm

__all__ = ["LAWS"]

#: Importing the other module declares its laws.
LAWS = attack_verdicts.LAWS


@law("inside-budget-and-domain", world=worlds, seed=seeds(), size=sizes(1, 4), budget=image_budgets,
     num=classes)  # fmt: skip
def inside_budget_and_domain(  # noqa: PLR0913 - the witness.
    subject: Subject, world: World, seed: int, size: int, budget: Budget, num: int
) -> None:
    """What it returns is finite, within the radius and the domain, for 2, 3 and 1000 classes."""
    attack, x = made(subject, world), batch_of(world, seed, size).x
    victim = ClassifierVictim(world, classes=num, size=size)
    budget = known_to(attack, budget)
    found = run(attack, victim, x, budget, world, seed)
    finite(
        found,
        what="adversarial inputs",
        mend="guard divisions by norms and by differences of logits",
    )
    length = norms.norm((found - x).double(), budget.norm)
    slack = 1e-5 * (1 + float(x.abs().max())) * (1 if budget.norm == "linf" else x[0].numel())
    if bool((length > budget.radius + slack).any()):
        raise wrong(
            f"a {budget.norm} distance of {shown(float(length.max()))}",
            wanted=f"at most the radius {shown(float(budget.radius))}",
            mend="leave `run` to the core, which projects what `search` proposes",
        )
    domain = world.data.domain
    if domain is not None and bool(((found < domain.low) | (found > domain.high)).any()):
        raise wrong(
            f"values from {shown(float(found.min()))} to {shown(float(found.max()))}",
            wanted=f"inside [{domain.low}, {domain.high}]",
            mend="leave `run` to the core",
        )


@law(
    "zero-radius-is-identity", world=worlds, seed=seeds(), budget=image_budgets, some=st.booleans()
)
def zero_radius_is_identity(
    subject: Subject, world: World, seed: int, budget: Budget, some: bool
) -> None:
    """Samples of radius zero come out bit for bit, beside others or not."""
    attack, x = made(subject, world), batch_of(world, seed, 3).x
    radius = torch.tensor([0.0, budget.radius if some else 0.0, 0.0])
    victim = ClassifierVictim(world, classes=3, size=3)
    found = run(attack, victim, x, budget._replace(radius=radius), world, seed)
    mend = "divide by the radius only where it is above zero, and return one input per sample"
    rows = radius == 0
    same_bits(found[rows], x[rows], what="inputs at radius zero", mend=mend)
    finite(found, what="inputs beside samples of radius zero", mend=mend)


@law(
    "leaves-everything-alone", world=worlds, seed=seeds(), budget=image_budgets, train=st.booleans()
)
def leaves_everything_alone(
    subject: Subject, world: World, seed: int, budget: Budget, train: bool
) -> None:
    """Model and input are byte-identical after a search: weights, buffers, grads, flags."""
    attack, x = made(subject, world), batch_of(world, seed, 3).x
    # In train mode batch norm and dropout change things by themselves; a linear network has none.
    victim = ClassifierVictim(world, classes=3, size=3, linear=train)
    victim.net.train(train)
    with leaves("a search", victim.net, inputs={"x": x}):
        run(attack, victim, x, budget, world, seed)


@law("follows-its-generator", world=worlds, seed=seeds(), budget=image_budgets)
def follows_its_generator(subject: Subject, world: World, seed: int, budget: Budget) -> None:
    """A search repeated with the same numbers finds the same, whatever happened in between."""
    attack, x = made(subject, world), batch_of(world, seed, 3).x
    victim = ClassifierVictim(world, classes=3, size=3)
    first = run(attack, victim, x, budget, world, seed)
    run(attack, victim, batch_of(world, seed + 1, 3).x, budget, world, seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        again = run(attack, victim, x, budget, world, seed)
    same_bits(
        again,
        first,
        what="what a repeated search finds",
        mend="draw from rng alone, and keep nothing from one search to the next",
    )


@law("samples-are-independent", world=worlds, seed=seeds(), size=sizes(2, 5), budget=image_budgets)
def samples_are_independent(
    subject: Subject, world: World, seed: int, size: int, budget: Budget
) -> None:
    """Attacked in two parts, samples end where they end together."""
    attack, x = made(subject, world), batch_of(world, seed, size).x.double()
    cut = size // 2
    whole, *parts = (
        _part(attack, world, x, budget, seed, rows)
        for rows in (slice(0, size), slice(0, cut), slice(cut, size))
    )
    same_values(
        torch.cat(parts),
        whole,
        what="inputs attacked in two parts against whole",
        rtol=1e-6,
        mend="draw with a leading sample axis; stop, step and normalise per sample",
    )


def _part(  # noqa: PLR0913 - the coordinates of an attack.
    attack: Attack, world: World, x: Tensor, budget: Budget, seed: int, rows: slice
) -> Tensor:
    part, start = x[rows], rows.start
    victim = ClassifierVictim(world, classes=3, size=part.shape[0], start=start)
    victim.net.double()
    return run(attack, victim, part, budget, world, seed, start=start, total=x.shape[0])


@law("cost-as-declared", world=worlds, seed=seeds(), budget=image_budgets, num=classes)
def cost_as_declared(subject: Subject, world: World, seed: int, budget: Budget, num: int) -> None:
    """A search asks the victim at most as often as `cost()` says."""
    attack, x = made(subject, world), batch_of(world, seed, 2).x
    victim = CountingVictim(ClassifierVictim(world, classes=num, size=2))
    run(attack, victim, x, budget, world, seed)
    declared = attack.cost()
    counted = (victim.calls, victim.gradients)
    if victim.calls > declared.probes or victim.gradients > declared.input_backwards:
        raise wrong(
            f"{counted[0]} calls of victim.outputs and {counted[1]} gradients",
            wanted=f"at most {declared.probes} and {declared.input_backwards}, as cost() declares",
            mend="count restarts and the evaluation of the last step in cost()",
        )


@law("raises-the-loss", world=worlds, seed=seeds(), norm=st.sampled_from(("linf", "l2")))
def raises_the_loss(subject: Subject, world: World, seed: int, norm: Norm) -> None:
    """On a linear classifier, whose loss is convex, a search with gradients raises what it climbs.

    An attack that looks for the smallest perturbation is given all the room it wants.
    """
    attack = made(subject, world)
    if not attack.cost().input_backwards:
        message = "it takes no gradients"
        raise NotApplicable(message)
    if attack.members():
        message = "it returns what one of its members breaks, and the rest as it was"
        raise NotApplicable(message)
    # Away from the walls of the domain every step has room.
    x = 0.5 * batch_of(world, seed, 8).x + (
        0.25 if world.data.domain and world.data.domain.low == 0 else 0
    )
    victim = ClassifierVictim(world, classes=3, size=8, linear=True)
    radius = math.inf if attack.minimal_norm else 0.2
    found = run(attack, victim, x, Budget(norm, radius, "image"), world, seed)
    with torch.no_grad():
        clean = victim.outputs(x)
        objective = attack.objective(victim, clean) or victim.loss
        before, after = objective(clean).mean(), objective(victim.outputs(found)).mean()
    if attack.minimal_norm and bool(clean.argmax(dim=1).ne(victim.y).all()):
        # All are beaten where they are.
        return
    if not float(after) > float(before):
        raise wrong(
            f"a mean loss of {shown(float(after))} after the search, {shown(float(before))} before",
            wanted="a larger loss: the attacker climbs it",
            mend="check the sign of the step, and that victim.loss is what is differentiated",
        )


@law("works-without-verdicts", world=worlds, seed=seeds(), budget=image_budgets)
def works_without_verdicts(subject: Subject, world: World, seed: int, budget: Budget) -> None:
    """It attacks a network that is no classifier, whose `broken` knows nothing."""
    attack, x = made(subject, world), batch_of(world, seed, 2).x
    found = run(attack, RegressorVictim(world), x, budget, world, seed)
    finite(found, what="inputs found for a regressor", mend="treat broken() = None as never beaten")


@law("works-without-domain", world=worlds, seed=seeds(), budget=image_budgets)
def works_without_domain(subject: Subject, world: World, seed: int, budget: Budget) -> None:
    """It attacks inputs that have no range of valid values, and stays within the radius."""
    attack, x = made(subject, world), 5 * batch_of(world, seed, 2).x
    victim = ClassifierVictim(world, classes=3, size=2)
    budget = known_to(attack, budget)
    found = attack.run(victim, x, budget, domain=None, rng=draws(seed, 2))
    finite(found, what="inputs found without a domain", mend="treat domain = None as no limits")
