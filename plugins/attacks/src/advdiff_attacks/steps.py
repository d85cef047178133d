"""Attacks that step along the gradient towards the input: FGSM, PGD and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.climb import Climb, Rules
from advdiff_attacks.faults import refusal
from advdiff_attacks.objectives import LossName, objective_of
from advdiff_attacks.starts import StartLaw
from advdiff_core import Attack, Budget, Build, Draws, SearchCost, Victim
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["FGSM", "PGD"]


@settings
class _Common:
    """Keys that FGSM and PGD share."""

    loss: LossName = setting("victim", help="what grows; victim: what is given to the attack")
    start_scale: float = setting(
        1.0, gt=0.0, le=1.0, applies=("start", ("uniform", "corners")),
        help="radius of the random start as a share of the radius",
    )  # fmt: skip
    start_std: float = setting(
        0.001, gt=0.0, applies=("start", ("gaussian",)),
        help="std of the random start, on the [0, 1] scale of the data",
    )  # fmt: skip
    sparsity: float = setting(
        0.01, gt=0.0, le=1.0, help="L1 only: share of the coordinates that a step moves"
    )
    keep: Literal["best", "last"] = setting(
        "best",
        help="return the best point seen, the clean one included, or the last, as training does",
    )


class _Climbing(Attack):
    """A climb from each start, and the best point of all of them."""

    settings: Any

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.rules = self._rules()
        self.keeps_best = self.rules.keep_best
        self._check()

    def _rules(self) -> Rules:
        raise NotImplementedError

    @property
    def _restarts(self) -> int:
        return 1

    def _check(self) -> None:
        if self.rules.start != "none" or self.rules.loss != "kl":
            return
        message = 'the gradient of loss = "kl" vanishes at the clean point'
        raise refusal(self.build, "start", message, 'write start = "uniform" or "gaussian"')

    def objective(self, victim: Victim, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """See `Attack.objective`."""
        return objective_of(victim, self.rules.loss, clean)

    def cost(self) -> SearchCost:
        """A forward and a gradient per step; one more forward to judge the last point of a climb.

        And one at the clean points, if they are compared with or the loss needs them.
        """
        rules, climbs = self.rules, self._restarts
        last = 1 if rules.keep_best else 0
        clean = 1 if rules.keep_best or rules.loss == "kl" else 0
        return SearchCost(climbs * (rules.steps + last) + clean, climbs * rules.steps)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        clean, best = self._clean(victim, x)
        climb, found = Climb(self.rules, domain), x
        for restart in range(self._restarts):
            stream = rng.child("restart", restart)
            found = climb.run(victim, x, budget, stream, clean=clean, best=best)
        return found if best is None else best.x

    def _clean(self, victim: Victim, x: Tensor) -> tuple[Tensor | None, Best | None]:
        """Outputs at the clean points, and the best points so far: the clean ones."""
        if not (self.rules.keep_best or self.rules.loss == "kl"):
            return None, None
        with torch.no_grad():
            outputs = victim.outputs(x)
            if not self.rules.keep_best:
                return outputs, None
            loss = self.objective(victim, outputs)(outputs)
            return outputs, Best(x, loss, victim.broken(outputs))


class FGSM(_Climbing):
    """One step along the steepest direction (Goodfellow et al. 2015), by default the whole radius.

    With a uniform start and `step_scale = 1.25` it is that of fast adversarial training (Wong et
    al. 2020); `start = "corners"` and 0.5 for both scales are R+FGSM (Tramer et al. 2018).
    """

    @settings
    class Settings(_Common):
        """Keys of `use = "fgsm"`."""

        start: StartLaw = setting("none", help="where the step begins: clean or a random point")
        step_scale: float = setting(1.0, gt=0.0, help="length of the step as a share of the radius")

    settings: Settings

    def _rules(self) -> Rules:
        s = self.settings
        return Rules(
            loss=s.loss, steps=1, step=None, step_scale=s.step_scale, start=s.start,
            start_scale=s.start_scale, start_std=s.start_std, momentum=0.0, sparsity=s.sparsity,
            keep_best=s.keep == "best", drop_broken=False,
        )  # fmt: skip


class PGD(_Climbing):
    """Projected gradient ascent from random starts (Madry et al. 2018), in Linf, L2 and L1.

    L1 steps move the steepest part of the coordinates (Tramer and Boneh 2019); `momentum = 1` is
    MI-FGSM (Dong et al. 2018). `keep = "last"` is what training does: as many forwards and
    gradients as steps, nothing else.
    """

    @settings
    class Settings(_Common):
        """Keys of `use = "pgd"`."""

        steps: int = setting(10, ge=1, le=100_000, help="gradient steps of a climb")
        step: float | None = setting(
            None, gt=0.0,
            help="length of a step on the [0, 1] scale of the data; left out: step_scale counts",
        )  # fmt: skip
        step_scale: float = setting(
            0.25, gt=0.0, help="length of a step as a share of the radius, unless step is given"
        )
        start: StartLaw = setting("uniform", help="where a climb begins: clean or a random point")
        restarts: int = setting(1, ge=1, le=1000, help="climbs; the best point of all is kept")
        momentum: float = setting(
            0.0, ge=0.0, help="decay of the sum of gradients that is followed"
        )
        drop_broken: bool = setting(
            False,
            help="leave samples once they are broken: faster, and not the worst points of them",
        )

    settings: Settings

    @property
    def _restarts(self) -> int:
        return self.settings.restarts

    def _rules(self) -> Rules:
        s = self.settings
        return Rules(
            loss=s.loss, steps=s.steps, step=s.step, step_scale=s.step_scale, start=s.start,
            start_scale=s.start_scale, start_std=s.start_std, momentum=s.momentum,
            sparsity=s.sparsity, keep_best=s.keep == "best", drop_broken=s.drop_broken,
        )  # fmt: skip

    def _check(self) -> None:
        super()._check()
        s = self.settings
        if s.restarts > 1 and s.keep == "last":
            message = f"{s.restarts} restarts, of which only the last would count"
            raise refusal(self.build, "keep", message, 'write keep = "best", or restarts = 1')
        if s.restarts > 1 and s.start == "none":
            message = f"{s.restarts} restarts from the clean point, which find the same"
            fix = 'write start = "uniform", or restarts = 1'
            raise refusal(self.build, "start", message, fix)
