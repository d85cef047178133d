"""What the laws of attacks share: how one is built and run."""

from __future__ import annotations

from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.attack import Attack, Victim
from advdiff_core.testing.bench import World, draws
from advdiff_core.testing.kinds.rigs import rig
from advdiff_core.testing.law import Laws
from advdiff_core.testing.strategies import budgets
from advdiff_core.testing.subject import Subject
from advdiff_core.types import Budget

__all__ = ["LAWS", "classes", "image_budgets", "known_to", "law", "made", "run"]

LAWS = Laws("attack")
law = LAWS.law

classes = st.sampled_from((3, 2, 1000))
image_budgets = budgets(units=("image",))


def made(subject: Subject, world: World) -> Attack:
    """The attack, built once per world."""
    found: Attack = subject.memo(("attack", world.name), lambda: rig(subject).build(subject, world))
    return found


def run(  # noqa: PLR0913 - the coordinates of an attack.
    attack: Attack, victim: Victim, x: Tensor, budget: Budget, world: World, seed: int,
    *, start: int = 0, total: int = 0,
) -> Tensor:  # fmt: skip
    """Adversarial inputs [B, ...]."""
    rng = draws(seed, x.shape[0], start=start, total=total)
    budget = known_to(attack, budget)
    return attack.run(victim, x, budget, domain=world.data.domain, rng=rng)


def known_to(attack: Attack, budget: Budget) -> Budget:
    """The budget, in a norm that the attack knows."""
    return budget if budget.norm in attack.norms else budget._replace(norm=attack.norms[0])
