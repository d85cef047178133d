"""Auto-PGD: projected gradient ascent that finds its step sizes by itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from advdiff_attacks.apgd_moves import Move, move_of
from advdiff_attacks.apgd_run import Found, Plan, run
from advdiff_attacks.apgd_state import State
from advdiff_attacks.best import Best
from advdiff_attacks.buckets import BUCKET, remaining, settled
from advdiff_attacks.objectives import LossName, Objective, objective_of, targeted_dlr
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim, expand
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain, Norm

__all__ = ["APGDCE", "APGDDLR", "APGDT"]

#: L1: radii of the parts of a search, as multiples, and their shares of the steps (Croce and Hein
#: 2021, section 3.3).
ENLARGED = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))

#: Restarts and targets of AutoAttack's standard version.
RESTARTS, TARGETS = {"linf": 1, "l2": 1, "l1": 5}, {"linf": 9, "l2": 9, "l1": 5}

#: What one restart climbs, and the classes [B] that it aims at (zeros where it aims at none).
Stage = tuple[Callable[[Victim, Tensor], Objective], Tensor]


@settings
class Common:
    """Keys of every auto-PGD."""

    steps: int = setting(100, ge=0, help="steps of a restart")
    rho: float = setting(
        0.75, ge=0, le=1, help="share of steps that must raise the loss, lest the step be halved"
    )
    eot: int = setting(
        1, ge=1, help="forward passes per point, averaged, for victims that draw random numbers"
    )
    enlarge: bool = setting(
        True, help="L1: search within three times and twice the radius first, as AutoAttack does"
    )
    bucket: int = setting(0, ge=0, help=BUCKET)
    interval: int = setting(10, ge=0, help="steps between drops of broken samples; 0 keeps all")


class _APGD(Attack):
    """What all auto-PGDs share: restarts on the samples left, each from a random point."""

    settings: Any

    @abstractmethod
    def _stages(self, victim: Victim, clean: Tensor, norm: Norm) -> Iterator[Stage]:
        """Restarts, one after the other; `clean` are the outputs [B, K] at the clean inputs."""

    @abstractmethod
    def _most(self) -> int:
        """Largest number of restarts in any norm."""

    def cost(self) -> SearchCost:
        """A forward at each point and a gradient at all but the last, per restart.

        Each restart begins and, in L1, each of its three radii ends with a forward more; one
        judges the clean inputs.
        """
        s, restarts = self.settings, self._most()
        more = len(ENLARGED) if s.enlarge else 1
        return SearchCost(restarts * s.eot * (s.steps + more) + 1, restarts * s.eot * s.steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        with torch.no_grad():
            clean = victim.outputs(x)
        radius = torch.as_tensor(budget.radius).to(x)
        move = move_of(budget, domain, self.settings.rho)
        best: Best | None = None
        for number, (climb, target) in enumerate(self._stages(victim, clean, budget.norm)):
            best = best or Best(x, climb(victim, target)(clean), settled(victim, clean))
            rows, part = remaining(victim, best.broken)
            if not len(rows):
                break
            draws = rng.child("restart", number).rows(rows)
            start = x[rows], radius[rows], target[rows]
            _take(best, rows, self._restart(move, climb, part, start, draws, budget.norm))
        return x if best is None else best.x

    def _restart(  # noqa: PLR0913 - how, what, from where.
        self,
        move: Move,
        climb: Callable[[Victim, Tensor], Objective],
        victim: Victim,
        start: tuple[Tensor, Tensor, Tensor],
        draws: Draws,
        norm: Norm,
    ) -> Found:
        """One restart; in L1 from larger radii down to the radius."""
        x, radius, target = start
        parts = _parts(self.settings.steps, enlarge=self.settings.enlarge and norm == "l1")
        point, found = move.start(x, radius * parts[0][0], draws), None
        for factor, steps in parts:
            here, final = radius * factor, factor == 1.0
            if found is not None:
                point = move.project(x, found.best, here)
            state = State.at(x, *move.bounds(x, here), here, target, point)
            plan = self._plan(move, climb, steps, final=final, norm=norm)
            found = run(plan, victim, state, resumed=len(parts) > 1)
        assert found is not None
        return found

    def _plan(
        self,
        move: Move,
        climb: Callable[[Victim, Tensor], Objective],
        steps: int,
        *,
        final: bool,
        norm: Norm,
    ) -> Plan:
        s = self.settings
        # What breaks a sample outside its radius settles nothing.
        return Plan(
            move=move, objective=climb, steps=steps, eot=s.eot, bucket=s.bucket,
            interval=s.interval if final else 0, sparse=norm == "l1",
        )  # fmt: skip


class APGDCE(_APGD):
    """Auto-PGD on the cross-entropy (Croce and Hein 2020; in L1 Croce and Hein 2021)."""

    @settings
    class Settings(Common):
        """Keys of `use = "apgd-ce"`."""

        restarts: int = setting(1, ge=0, help="random starts; 0: one, and five in L1")

    def objective(self, victim: Victim, clean: Tensor) -> Objective:
        """See `Attack.objective`."""
        return objective_of(victim, "ce", clean)

    def _stages(self, victim: Victim, clean: Tensor, norm: Norm) -> Iterator[Stage]:
        return _untargeted("ce", self.settings.restarts, clean, norm)

    def _most(self) -> int:
        return self.settings.restarts or max(RESTARTS.values())


class APGDDLR(_APGD):
    """Auto-PGD on the difference of logits ratio (Croce and Hein 2020, eq. 6)."""

    @settings
    class Settings(Common):
        """Keys of `use = "apgd-dlr"`."""

        restarts: int = setting(1, ge=0, help="random starts; 0: one, and five in L1")

    def objective(self, victim: Victim, clean: Tensor) -> Objective:
        """See `Attack.objective`."""
        return objective_of(victim, "dlr", clean)

    def _stages(self, victim: Victim, clean: Tensor, norm: Norm) -> Iterator[Stage]:
        return _untargeted("dlr", self.settings.restarts, clean, norm)

    def _most(self) -> int:
        return self.settings.restarts or max(RESTARTS.values())


class APGDT(_APGD):
    """Auto-PGD on the targeted difference of logits ratio (Croce and Hein 2020, eq. 7).

    One search per target: the other classes by their clean logits, the largest first. A victim
    without labels has none; its own loss is climbed once.
    """

    @settings
    class Settings(Common):
        """Keys of `use = "apgd-t"`."""

        targets: int = setting(9, ge=0, help="classes that are aimed at; 0: nine, and five in L1")
        restarts: int = setting(1, ge=1, help="random starts towards each")

    def _stages(self, victim: Victim, clean: Tensor, norm: Norm) -> Iterator[Stage]:
        if victim.labels is None:
            yield (lambda part, _: part.loss), _no_target(clean)
            return
        count = min(self.settings.targets or TARGETS[norm], clean.shape[1] - 1)
        own = torch.nn.functional.one_hot(victim.labels, clean.shape[1]).bool()
        classes = clean.masked_fill(own, -torch.inf).topk(count, dim=1).indices
        for target in classes.unbind(1):
            for _ in range(self.settings.restarts):
                yield _towards, target

    def _most(self) -> int:
        return self.settings.restarts * (self.settings.targets or max(TARGETS.values()))


def _untargeted(loss: LossName, restarts: int, clean: Tensor, norm: Norm) -> Iterator[Stage]:
    def climb(victim: Victim, _: Tensor) -> Objective:
        return objective_of(victim, loss)

    for _ in range(restarts or RESTARTS[norm]):
        yield climb, _no_target(clean)


def _no_target(clean: Tensor) -> Tensor:
    return torch.zeros(clean.shape[0], dtype=torch.int64, device=clean.device)


def _towards(victim: Victim, target: Tensor) -> Objective:
    labels = victim.labels
    assert labels is not None, "targets are classes, which this victim has none of"
    return lambda outputs: targeted_dlr(outputs, labels, target)


def _parts(steps: int, *, enlarge: bool) -> tuple[tuple[float, int], ...]:
    """Multiples of the radius and numbers of steps; these sum to `steps`."""
    if not enlarge:
        return ((1.0, steps),)
    counts = [min(math.ceil(share * steps), steps // 2) for _, share in ENLARGED[:-1]]
    counts.append(steps - sum(counts))
    return tuple((factor, count) for (factor, _), count in zip(ENLARGED, counts, strict=True))


def _take(best: Best, rows: Tensor, found: Found) -> None:
    """Add what a restart found; nothing of samples that were broken before it."""
    point = torch.where(expand(found.broken, found.best), found.adversarial, found.best)
    loss = found.loss.masked_fill(best.broken[rows], -torch.inf)
    best.update(point, loss, found.broken, rows)
