"""The learned ray: its start, bounds and gradients, who trains it, and that runs repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_robustadv.gain import RayGain
from advdiff_robustadv.heads import RayHead, statistics
from advdiff_robustadv.learned import LearnedKeys, RayLearned, shape_of
from advdiff_robustadv.perturbations import RayFGSM
from advdiff_robustadv.terms import Equivariance
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, DataInfo, Noised, NoiseSchedule, View
from advdiff_core.backbones.mlp import MLP
from advdiff_core.engine.api import train
from advdiff_core.engine.checkpoint import load, newest_valid
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.recipe import loads_recipe
from advdiff_core.schedules import EDM, Flow, VPLinear
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)
HEAD = Model(RayHead, RayHead.Settings(width=8), parametrization="none")
POINTS = torch.randn(16, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def stage(
    perturbation: Moved | None = None,
    schedule: type[NoiseSchedule] = VPLinear,
    shake: float = 0.3,
    head: Model = HEAD,
    **keys: Any,
) -> Stage:
    """A student, a ray's head and the view that it shapes; weights moved away from zero."""
    made = schedule(schedule.Settings(), Build())
    moved = perturbation or Moved("clean", RayLearned, RayLearned.Settings(**keys))
    models = {"student": Model(MLP, MLP.Settings(width=16, blocks=1)), "ray": head}
    whole = build_stage(data=DATA, models=models, views={"adv": moved}, schedule=made)
    generator = torch.Generator().manual_seed(1)
    for name, size in (("student", 0.3), ("ray", shake)):
        module = whole.scene.roles[name].module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise)
    return whole


def moved_view(made: Stage) -> Noised:
    """The perturbed view."""
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("adv"),))
    return made.step(Plan([phase], made.scene), POINTS).get(View("adv"))


def gain(made: Stage, **keys: Any) -> RayGain:
    """The term."""
    return made.make(RayGain, RayGain.Settings(**keys))


def ray_turn(made: Stage, **keys: Any) -> Turn:
    """A player of the ray alone."""
    return Turn("ray", {"ray": gain(made, **keys)})


@pytest.mark.parametrize("schedule", [VPLinear, EDM, Flow])
@pytest.mark.parametrize("unit", ["image", "noise"])
def test_an_untrained_head_gives_the_ray_it_starts_from(
    unit: str, schedule: type[NoiseSchedule]
) -> None:
    """The same radius, start and step as `ray-fgsm` with these keys."""
    keys = {"omega": 1.7, "gamma": 0.05, "unit": unit}
    learned = stage(schedule=schedule, shake=0.0, **keys)
    fixed = Moved("clean", RayFGSM, RayFGSM.Settings(**keys))
    ours, theirs = moved_view(learned), moved_view(stage(fixed, schedule, shake=0.0))
    torch.testing.assert_close(ours.radius, theirs.radius, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.x_t, theirs.x_t, rtol=1e-12, atol=1e-14)


@given(raw=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), omega=st.floats(1.01, 3.99))
def test_exponent_and_bias_stay_between_their_bounds(
    raw: tuple[float, float], omega: float
) -> None:
    """Whatever the network says; and with zeros they are where they start."""
    keys = LearnedKeys(omega=omega, gamma=0.1, gamma_min=0.01, gamma_max=0.3)
    for dtype in (torch.float32, torch.float64):
        found = shape_of(keys, torch.tensor([raw, (0.0, 0.0)], dtype=dtype))
        # In float32 a bound itself is rounded.
        assert ((found.omega >= 1.0) & (found.omega <= 4.0)).all()
        assert ((found.gamma >= 0.01 * (1 - 1e-6)) & (found.gamma <= 0.3 * (1 + 1e-6))).all()
        assert found.omega[1].item() == pytest.approx(omega, rel=1e-6)
        assert found.gamma[1].item() == pytest.approx(0.1, rel=1e-6)
        assert ((found.away >= 0) & (found.away <= 2)).all()
        assert found.away[1] == pytest.approx(0, abs=1e-12)


def test_a_fixed_bias_is_not_learned() -> None:
    """Without bounds the second number of the network counts for nothing."""
    found = shape_of(LearnedKeys(gamma=0.07), torch.tensor([[0.3, 9.0], [0.3, -9.0]]))
    assert torch.equal(found.gamma, torch.tensor([0.07, 0.07]))
    assert found.away[0] == found.away[1] > 0


def test_the_radius_depends_on_the_sample() -> None:
    """Two samples at one time get different radii: omega reads the input, not t alone."""
    made = stage()
    head = made.scene.roles["ray"].module
    x = torch.cat([torch.zeros(1, 3), torch.ones(1, 3)]).double()
    codes = head(x, torch.full((2,), 300.0).double()).output
    assert (codes[0] != codes[1]).all()
    at_other_time = head(x, torch.full((2,), 900.0).double()).output
    assert (codes != at_other_time).all()


def test_statistics_of_a_known_sample() -> None:
    """Mean, standard deviation, mean size and roughness, by hand; finite slopes at a constant."""
    x = torch.tensor([[[1.0, -1.0], [3.0, 3.0]]], dtype=torch.float64)
    expected = [1.5, (11 / 4) ** 0.5, 2.0, (4 / 4) ** 0.5]
    torch.testing.assert_close(statistics(x)[0], torch.tensor(expected).double(), rtol=1e-6, atol=0)
    flat = torch.zeros(1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(statistics(flat).sum(), flat)
    assert slope.isfinite().all()


@pytest.mark.parametrize("objective", ["equivariance", "prediction-gap"])
@pytest.mark.parametrize("goal", ["maximise", "minimise"])
@pytest.mark.parametrize("unit", ["image", "noise"])
def test_the_gradient_is_that_of_the_whole_pipeline(unit: str, goal: str, objective: str) -> None:
    """Finite differences through search, projection, target, weight and cap agree with it."""
    made = stage(unit=unit, gamma_min=0.001, gamma_max=0.3)
    turn = ray_turn(made, goal=goal, objective=objective, w_max=0.7)
    bias = made.scene.roles["ray"].module.outer.bias
    found = run_step(made, [turn], POINTS).grads["models.ray.outer.bias"]
    for axis in (0, 1):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                bias[axis] += sign * 1e-6
            values.append(run_step(made, [turn], POINTS).losses["ray"].mean())
            with torch.no_grad():
                bias[axis] -= sign * 1e-6
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(found[axis], slope, rtol=1e-5, atol=1e-10)


def test_its_gain_is_the_equivariance_term() -> None:
    """Minus what the student pays, number by number, if nothing pulls back."""
    made = stage()
    keys = {"w_max": 0.7, "min_sigma": 0.2}
    term = made.make(Equivariance, Equivariance.Settings(**keys))
    turns = [ray_turn(made, pull=0.0, **keys), Turn("student", {"equivariance": term})]
    losses = run_step(made, turns, POINTS).losses
    torch.testing.assert_close(losses["ray"], -losses["equivariance"], rtol=1e-10, atol=0)


@pytest.mark.parametrize("joint", [True, False], ids=["one player", "two players"])
def test_who_learns_what(joint: bool) -> None:
    """The ray moves no weight of the student, nor its terms the ray; passes are as planned."""
    made = stage()
    student = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    turns = [ray_turn(made), Turn("student", student)]
    if joint:
        turns = [Turn("student", {**student, "ray": gain(made)}, models=("student", "ray"))]
    both = run_step(made, turns, POINTS)
    assert both.counted == both.planned
    assert both.counted == {"student": Cost(4, 2, 1), "ray": Cost(1, 0, 1)}
    alone = run_step(made, [Turn("student", student)], POINTS)
    assert {name for name in alone.grads if name.startswith("models.ray")} == set()
    for name, grad in alone.grads.items():
        torch.testing.assert_close(both.grads[name], grad, rtol=1e-12, atol=0)
    assert both.grads["models.ray.outer.weight"].abs().max() > 0


@pytest.mark.parametrize(("goal", "grows"), [("maximise", True), ("minimise", False)])
def test_an_adversary_widens_its_rays_and_a_friend_narrows_them(goal: str, grows: bool) -> None:
    """After some steps the mean radius has moved as the goal says, and a strong pull holds it."""
    radii = []
    for pull in (0.0, 1e6):
        made = stage(shake=0.0)
        turn = ray_turn(made, goal=goal, pull=pull, w_max=0.0)
        before = moved_view(made).radius.mean()
        for _ in range(20):
            gradients = run_step(made, [turn], POINTS).grads
            module = made.scene.roles["ray"].module
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    step = gradients[f"models.ray.{name}"]
                    parameter -= 0.05 * step / step.norm().clamp_min(1e-9)
        radii.append((moved_view(made).radius.mean() - before).item())
    assert (radii[0] > 0.01) is grows
    assert (radii[0] < -0.01) is not grows
    assert abs(radii[1]) < 0.3 * abs(radii[0])


RECIPE = """
advdiff = 1
[run]
name = "learned"
images = 64
batch = 8
checkpoint_every = 16
threads = 1
precision = "fp32"
[data]
use = "two-moons"
count = 40
[models.student]
use = "mlp"
width = 16
blocks = 1
[models.ray]
use = "ray-head"
parametrization = "none"
width = 8
[views.adv]
from = "clean"
perturb = { use = "ray-learned" }
[terms.denoise]
use = "denoise"
[terms.equivariance]
use = "equivariance"
weight = 0.3
after = 16
ramp = 32
[terms.ray]
use = "ray-gain"
[players.student]
terms = ["denoise", "equivariance"]
ema = [0.9]
optimizer = { use = "adamw", lr = 1e-2 }
[players.ray]
terms = ["ray"]
ema = [0.9, 0.5]
every = 2
optimizer = { use = "adamw", lr = 1e-2 }
[sample]
use = "ddim"
steps = 2
images = 4
"""
JOINT = RECIPE.replace('"denoise", "equivariance"]', '"denoise", "equivariance", "ray"]')
JOINT = JOINT.replace("[players.student]", '[players.student]\nmodels = ["student", "ray"]')
JOINT = JOINT[: JOINT.index("[players.ray]")] + JOINT[JOINT.index("[sample]") :]


def state(run: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    path, skipped = newest_valid(run / "checkpoints")
    assert path is not None
    assert not skipped
    return load(path).shared


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested tables."""
    if isinstance(tree, dict):
        return {k: v for key, one in tree.items() for k, v in flat(one, f"{name}.{key}").items()}
    if isinstance(tree, list):
        return flat(dict(enumerate(tree)), name)
    return {name: tree}


@pytest.mark.parametrize("text", [RECIPE, JOINT], ids=["its own player", "the student's player"])
def test_a_resumed_run_learns_the_same_bits(text: str, tmp_path: Path) -> None:
    """Head, averages, optimizer and a ramped weight go on from a checkpoint as if uninterrupted."""
    whole = train(loads_recipe(text), out=tmp_path / "whole")
    # Ended in the middle of the ramp, and gone on with.
    part = train(loads_recipe(text, overrides=["run.images=40"]), out=tmp_path / "part")
    train(loads_recipe(text), resume=part.run)
    a, b = flat(state(whole.run)), flat(state(part.run))
    assert a.keys() == b.keys()
    assert any("ray" in name and "outer.weight" in name for name in a)
    for name, value in a.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, b[name]), name
    head = [v for name, v in a.items() if name.endswith("ray.outer.weight")]
    assert len(head) >= 1
    assert head[0].abs().max() > 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"omega": 5.0}, "omega: 5.0 must lie between omega_min, 1.0, and omega_max, 4.0"),
        ({"omega_min": 2.0}, "omega: 2.0 must lie between omega_min, 2.0"),
        ({"gamma_max": 0.1}, "gamma_min: write both bounds of gamma, or none"),
        ({"gamma_min": 0.0}, "gamma_max: write both bounds of gamma, or none"),
        (
            {"gamma": 0.0, "gamma_min": 0.0, "gamma_max": 1.0},
            "gamma: 0.0 must lie between gamma_min, 0.0, and gamma_max, 1.0",
        ),
    ],
)
def test_bounds_that_do_not_enclose_the_start_are_refused(keys: dict[str, Any], words: str) -> None:
    """The message gives all three numbers."""
    with pytest.raises(ValueError, match=words):
        RayLearned.Settings(**keys)


def test_a_head_of_odd_width_is_refused() -> None:
    """Features of the noise level come in pairs."""
    with pytest.raises(ValueError, match="width: 7 must be even"):
        RayHead.Settings(width=7)


def test_a_player_that_does_not_train_the_ray_is_refused() -> None:
    """The error names the role to list."""
    made = stage()
    with pytest.raises(RecipeError, match=r"does not train models\.ray") as caught:
        run_step(made, [Turn("student", {"ray": gain(made)})], POINTS)
    assert caught.value.faults[0].fix == 'write models = ["ray"] for the player that lists it'


def test_a_view_of_another_ray_is_refused() -> None:
    """`ray-gain` has nothing to train there."""
    made = stage(Moved("clean", RayFGSM))
    with pytest.raises(RecipeError, match="the view 'adv' is not moved by a learned ray") as caught:
        run_step(made, [ray_turn(made)], POINTS)
    assert caught.value.faults[0].key == "views.adv.perturb"


def test_a_denoiser_shapes_no_ray() -> None:
    """The role has to be one without parametrization."""
    made = stage(head=Model(MLP, MLP.Settings(width=8, blocks=1)))
    with pytest.raises(RecipeError, match="model 'ray' shapes no ray: it is a denoiser") as caught:
        moved_view(made)
    assert caught.value.faults[0].key == "views.adv.perturb.ray"


def test_a_network_with_other_outputs_shapes_no_ray() -> None:
    """A classifier of three classes returns three numbers."""
    classifier = Model(MLP, MLP.Settings(width=8, blocks=1, outputs=3), parametrization="none")
    made = stage(head=classifier)
    with pytest.raises(ContractError, match=r"returned shape \[16, 3\], wanted two numbers"):
        moved_view(made)
