"""`advdiff plan`: what one step runs, from the declarations alone."""

from __future__ import annotations

import math
from typing import Any

from attrs import frozen

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.flops import MAX_CYCLE, flops_per_image, role_macs, step_cost
from advdiff_core.engine.size import flops_words, macs_words, parameters_of
from advdiff_core.step.plan import StepCost
from advdiff_core.types import Cost

__all__ = ["PlanReport", "plan_experiment", "step_cost"]


@frozen(kw_only=True)
class PlanReport:
    """What one step costs.

    Attributes:
        step: Passes of a step in which every player takes part.
        average: Passes per step on average, with the players' `every`.
        parameters: Parameters by role.
        macs: Multiply-accumulates of the forward of one sample, by role; None where they could not
            be counted, and for all if nobody asked.
        taps: Taps asked for, by forward.
        players: Player, its roles, terms, `every` and `passes`.
        flops: Operations per image of training; None where they were not or cannot be counted.
    """

    step: StepCost
    average: dict[str, tuple[float, float, float]]
    parameters: dict[str, int]
    macs: dict[str, int | None] | None
    taps: dict[str, tuple[str, ...]]
    players: list[dict[str, Any]]
    flops: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The object `advdiff plan --json` prints."""
        roles = {
            name: {
                "forwards": cost.forwards,
                "input_backwards": cost.input_backwards,
                "parameter_backwards": cost.parameter_backwards,
                "average": dict(
                    zip(
                        ("forwards", "input_backwards", "parameter_backwards"),
                        self.average[name],
                        strict=True,
                    )
                ),
                "parameters": self.parameters[name],
                **({} if self.macs is None else {"macs": self.macs[name]}),
            }
            for name, cost in sorted(self.step.roles.items())
        }
        queries = [
            {"query": query, "role": role, "forwards": count}
            for query, role, count in self.step.queries
        ]
        counted = {} if self.flops is None else {"flops_per_image": self.flops}
        said = {"queries": queries, "taps": self.taps, "players": self.players}
        return {"roles": roles, **said, **counted}

    def _size(self, name: str) -> str:
        macs = None if self.macs is None else self.macs[name]
        each = "" if macs is None else f", {macs_words(macs)} a forward of one sample"
        return f"{self.parameters[name]:,} parameters{each}"

    def lines(self) -> list[str]:
        """The plan in words, a line each."""
        lines = ["one step, every player taking part:"]
        for name, cost in sorted(self.step.roles.items()):
            lines.append(
                f"  {name}: {_many(cost.forwards, 'forward')}, "
                f"{_many(cost.input_backwards, 'input-only backward')}, "
                f"{_many(cost.parameter_backwards, 'parameter backward')} "
                f"({self._size(name)})"
            )
        if self.flops is not None:
            lines.append(f"  {flops_words(self.flops)} per image of training")
        lines.append("forwards in order:")
        lines += [f"  {role} x{count}  {query}" for query, role, count in self.step.queries]
        for forward, taps in sorted(self.taps.items()):
            lines.append(f"taps of {forward}: {', '.join(taps)}")
        lines.append("players:")
        for player in self.players:
            models, terms = ", ".join(player["models"]), ", ".join(player["terms"])
            lines.append(
                f"  {player['name']}: trains {models} on {terms}, "
                f"every {player['every']} steps, {_many(player['passes'], 'pass', 'passes')}"
            )
        return lines


def plan_experiment(experiment: Experiment, *, macs: bool = False) -> PlanReport:
    """The plan of an assembled recipe; with `macs`, how much its networks multiply."""
    whole = step_cost(experiment)
    roles = experiment.scene.roles
    for name in roles:
        whole.add(name, Cost())
    cycle = min(math.lcm(*(player.every for player in experiment.players)), MAX_CYCLE)
    costs = [step_cost(experiment, index=index) for index in range(cycle)]
    return PlanReport(
        step=whole,
        average={
            name: _average([cost.roles.get(name, Cost()) for cost in costs]) for name in roles
        },
        parameters={name: parameters_of(role.module) for name, role in roles.items()},
        macs={name: role_macs(experiment, name) for name in roles} if macs else None,
        taps=_taps(experiment),
        flops=flops_per_image(experiment) if macs else None,
        players=[
            {
                "name": player.name,
                "models": [role.name for role in player.roles],
                "terms": [term.name for term in player.terms],
                "every": player.every,
                "passes": player.passes,
            }
            for player in experiment.players
        ],
    )


def _taps(experiment: Experiment) -> dict[str, tuple[str, ...]]:
    plans = [experiment.plan, *experiment.fresh_plans.values()]
    return {repr(f): d.taps for plan in plans for f, d in plan.demands.items() if d.taps}


def _average(costs: list[Cost]) -> tuple[float, float, float]:
    count = len(costs)
    return (
        sum(cost.forwards for cost in costs) / count,
        sum(cost.input_backwards for cost in costs) / count,
        sum(cost.parameter_backwards for cost in costs) / count,
    )


def _many(count: int, word: str, words: str = "") -> str:
    return f"{count} {word if count == 1 else words or word + 's'}"
