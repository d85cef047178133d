"""Consistency models in whole recipes: what the plan foretells, teachers out of runs, a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from advdiff_core import RecipeError
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.recipe import load_recipe, recipe_from_dict
from advdiff_core.types import Cost

RECIPES = Path(__file__).parents[1] / "src" / "advdiff_atdiff" / "recipes"
NET = {"use": "mlp", "parametrization": "edm", "sigma_data": 0.5, "width": 8, "blocks": 1}
GRID = {"use": "consistency-grid", "curriculum": "constant", "levels": 4}
TEACHER: dict[str, Any] = {
    "run": {"images": 32, "batch": 16, "device": "cpu", "threads": 1},
    "data": {"use": "gaussian-mixture", "count": 64},
    "schedule": {"use": "edm"},
    "models": {"student": NET},
    "terms": {"denoise": {"use": "denoise"}},
    "players": {"student": {"terms": ["denoise"]}},
    "sample": {"steps": 1, "images": 2},
}


def distillation(run: Path, **teacher: Any) -> dict[str, Any]:
    """A recipe that distills a run."""
    return {
        **TEACHER,
        "schedule": {"use": "edm", "density": {"sampler": GRID}},
        "models": {
            "student": NET,
            "target": {**NET, "follow": {"role": "student", "rate": 0.9}},
            "teacher": {**NET, "frozen": True, "init": str(run), **teacher},
        },
        "terms": {"consistency": {"use": "consistency-distillation"}},
        "players": {"student": {"terms": ["consistency"], "ema": [0.9]}},
        "sample": {"use": "consistency", "steps": 2, "images": 2},
    }


def units(name: str, *overrides: str) -> int:
    """Forward units of a step of a shipped recipe, as `advdiff plan` counts its passes."""
    found = plan_experiment(assemble(load_recipe(RECIPES / f"{name}.toml", list(overrides))))
    total = sum(found.step.roles.values(), Cost())
    return total.forwards + total.input_backwards + 2 * total.parameter_backwards


@pytest.mark.parametrize("data", ["points", "digits"])
def test_plan_counts_the_passes_of_the_options(data: str) -> None:
    """Distillation costs 6 units a step; three free passes 14, 17 and 18 by option A, B and C."""
    assert units(f"{data}-cd") == 6
    assert units(f"{data}-cd-free") == 14
    assert units(f"{data}-cd-free", 'terms.consistency.moves="target"') == 17
    assert units(f"{data}-cd-free", 'terms.consistency.moves="both"') == 18
    assert units(f"{data}-ct") == 4
    assert units(f"{data}-ct-free") == 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher."""
    return train(recipe_from_dict(TEACHER), out=tmp_path_factory.mktemp("teacher")).run


def test_distillation_of_a_run_trains_follows_and_samples(run: Path, tmp_path: Path) -> None:
    """The teacher stays as it was; the target has moved towards the student, and is stored."""
    made = assemble(recipe_from_dict(distillation(run)))
    before = {n: p.clone() for n, p in made.scene.roles["teacher"].module.named_parameters()}
    done = train(recipe_from_dict(distillation(run)), out=tmp_path)
    from advdiff_core.engine.weights import read_weights

    stored = {role: read_weights(done.run, role).tensors for role in ("student", "target")}
    start = dict(made.scene.roles["student"].module.named_parameters())
    for name, weight in before.items():
        assert torch.equal(weight, made.scene.roles["teacher"].module.state_dict()[name])
    moved = [n for n, w in stored["student"].items() if not torch.equal(w, start[n].detach())]
    assert moved
    for name in moved:
        gone = (stored["target"][name] - start[name].detach()).norm()
        assert 0 < float(gone) < float((stored["student"][name] - start[name].detach()).norm())


@pytest.mark.parametrize(
    ("teacher", "schedule", "wanted"),
    [
        (
            {"parametrization": "v"},
            {},
            "'teacher' was trained to predict 'edm', and is read as 'v'",
        ),
        ({"sigma_data": 1.0}, {}, "'teacher' was trained with sigma_data 0.5, not 1.0"),
        (
            {},
            {"sigma_max": 10.0},
            r"noise levels 0.002 \(t = 0.002\) to 80 \(t = 80\), those here are 0.002 .* to 10 ",
        ),
        ({}, {"use": "vp-linear"}, r"noise levels 0.002 .* those here are 0.01 \(t = 0.001\)"),
    ],
)
def test_a_teacher_trained_otherwise_is_refused(
    run: Path, teacher: dict[str, Any], schedule: dict[str, Any], wanted: str
) -> None:
    """Another parametrization, another scale of the data, other noise levels: a line each."""
    recipe = distillation(run, **teacher)
    recipe["schedule"] = {**recipe["schedule"], **schedule}
    with pytest.raises(RecipeError, match=wanted) as caught:
        assemble(recipe_from_dict(recipe))
    assert "terms.consistency.teacher" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
