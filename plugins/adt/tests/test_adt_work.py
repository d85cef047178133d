"""How much a rollout runs and trains on average: what operations per second are counted from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from advdiff_adt.stretches import StretchLaw

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.flops import step_cost
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.step.plan import Pass

LAWS: list[dict[str, Any]] = [
    {"rule": "adt"}, {"rule": "full"}, {"rule": "none"}, {"rule": "last-k", "count": 4},
    {"rule": "last-k", "truncation": "random"}, {"rule": "drtune", "choice": "spaced"},
    {"rule": "adt", "start": "fixed", "first": 2}, {"rule": "drtune", "early_stop": 0.4},
    {"rule": "adt", "start": "curriculum", "curriculum": 10},
]  # fmt: skip


@pytest.mark.parametrize("keys", LAWS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_means_are_those_of_many_draws(keys: dict[str, Any]) -> None:
    """Within five standard errors, whatever the law; a curriculum once it is at its end."""
    law, steps, count = StretchLaw(**keys), 8, 4000
    generator = torch.Generator().manual_seed(0)
    found = [law.draw(steps, 1000, generator) for _ in range(count)]
    for mean, values in zip(
        law.means(steps),
        ([float(one.count) for one in found], [float(len(one.trained)) for one in found]),
        strict=True,
    ):
        seen = torch.tensor(values, dtype=torch.float64)
        error = 5 * float(seen.std()) / math.sqrt(count)
        assert abs(mean - float(seen.mean())) <= error + 1e-12


TABLES: dict[str, Any] = {
    "run": {"images": 64, "batch": 8, "micro_batch": 8, "device": "cpu"},
    "data": {"use": "two-moons", "count": 64},
    "models": {
        "student": {"use": "mlp", "width": 16, "blocks": 1},
        "judge": {"use": "toy-critic", "kind": "discriminator"},
    },
    "terms": {
        "adversarial": {
            "use": "adversarial", "judge": "judge", "augment": [],
            "sampler": {"use": "ddim", "steps": 4, "clip_x0": False},
        },
        "discriminate": {"use": "discriminate"},
    },
    "players": {
        "student": {"terms": ["adversarial"], "every": 2}, "judge": {"terms": ["discriminate"]},
    },
}  # fmt: skip


def test_plan_counts_the_part_of_the_path_that_is_run() -> None:
    """Of four steps from a uniform start two and a half run; the generator trains up to three."""
    made = assemble(recipe_from_dict(TABLES))
    with_graph, without = (step_cost(made, index=index).passes for index in (0, 1))
    assert with_graph[Pass("student", None, "parameter")] == (1 + 2 + 3 + 3) / 4
    assert without[Pass("student", None, "forward")] == 2.5
    assert without[Pass("student", None, "parameter")] == 0
