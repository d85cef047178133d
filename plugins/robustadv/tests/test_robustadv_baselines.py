"""The baselines, the weights near the data, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_robustadv import rays
from advdiff_robustadv.baselines import CUT, GaussianSmoothing, InputPerturbation
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance, Invariance
from advdiff_robustadv.weights import low_noise_factor
from torch import Tensor

from advdiff_core import Build, DataInfo, Noised, View
from advdiff_core.backbones.mlp import MLP
from advdiff_core.cli.entry import main
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load, newest_valid
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import loads_recipe, recipe_from_dict
from advdiff_core.schedules import VPLinear
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)


def stage(component: Any, keys: Any = None, size: int = 16, **how: Any) -> tuple[Stage, Tensor]:
    """A student, a view moved by the component, and samples."""
    model = Model(MLP, MLP.Settings(width=16, blocks=1), parametrization=how.pop("worn", "eps"))
    moved = Moved("clean", component, keys)
    made = build_stage(data=DATA, models={"student": model}, views={"adv": moved}, **how)
    x0 = torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.scene.roles["student"].module.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made, x0


def views_of(made: Stage, x0: Tensor) -> tuple[Noised, Noised]:
    """The clean view and the perturbed one."""
    needs = (View("clean"), View("adv"))
    phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
    step = made.step(Plan([phase], made.scene), x0)
    return step.get(needs[0]), step.get(needs[1])


def test_input_perturbation_is_algorithm_1_of_ddpm_ip() -> None:
    """X_t of eps + gamma xi, xi standard normal, and eps itself as the target."""
    size = 4000
    made, x0 = stage(InputPerturbation, InputPerturbation.Settings(gamma=0.1), size)
    clean, moved = views_of(made, x0)
    assert torch.equal(moved.eps, clean.eps)
    xi = ((moved.x_t - clean.x_t) / (0.1 * clean.sigma)).flatten()
    assert abs(xi.mean().item()) < 5 / (3 * size) ** 0.5
    assert xi.std().item() == pytest.approx(1, abs=5 / (6 * size) ** 0.5)
    kurtosis = xi.pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=5 * (96 / (3 * size)) ** 0.5)


@pytest.mark.parametrize("worn", ["eps", "v", "x0"])
def test_input_perturbation_costs_what_ddpm_costs(worn: str) -> None:
    """One forward and one backward; its loss compares the moved prediction with the old truth."""
    made, x0 = stage(InputPerturbation, worn=worn)
    term = made.make(Denoise, Denoise.Settings(view="adv"))
    found = run_step(made, [Turn("student", {"denoise": term})], x0)
    assert found.counted == found.planned == {"student": Cost(1, 0, 1)}
    clean, moved = views_of(made, x0)
    role = made.scene.roles["student"]
    prediction = role.wear(role.module, moved.x_t, moved.t)
    truth = {
        "eps": clean.eps, "x0": clean.x0, "v": clean.alpha * clean.eps - clean.sigma * clean.x0
    }[worn]  # fmt: skip
    expected = (prediction.value - truth).square().mean(1).detach()
    torch.testing.assert_close(found.losses["denoise"], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("unit", ["image", "noise"])
def test_gaussian_smoothing_has_the_spread_of_the_ray(unit: Any) -> None:
    """Standard deviation r(t) / sqrt(3), that of `ray-random`, unless one is given."""
    size = 4000
    for std in (None, 0.2):
        keys = GaussianSmoothing.Settings(unit=unit, std=std)
        clean, moved = views_of(*stage(GaussianSmoothing, keys, size))
        share = rays.noise_share(clean)
        wanted = (share**2 + 8 / 255) / 3**0.5 if std is None else torch.full_like(share, std)
        scale = clean.sigma if unit == "noise" else 1.0
        xi = (moved.delta / scale / wanted[:, None]).flatten()
        assert xi.std().item() == pytest.approx(1, abs=5 / (6 * size) ** 0.5)
        torch.testing.assert_close(moved.radius, CUT * wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("target", ["follows", "stays"])
def test_the_target_of_smoothing_follows_or_stays(target: Any) -> None:
    """With "follows" the moved noise explains the moved input, with "stays" eps is as it was."""
    clean, moved = views_of(*stage(GaussianSmoothing, GaussianSmoothing.Settings(target=target)))
    recovered = (moved.x_t - moved.sigma * moved.eps) / moved.alpha
    assert torch.equal(moved.eps, clean.eps) is (target == "stays")
    assert torch.allclose(recovered, clean.x0, rtol=0, atol=1e-9) is (target == "follows")


def test_smoothing_with_the_target_left_is_ddpm_ip_in_noise_units() -> None:
    """Number for number."""
    keys = GaussianSmoothing.Settings(std=0.1, unit="noise", target="stays")
    _, ours = views_of(*stage(GaussianSmoothing, keys))
    _, theirs = views_of(*stage(InputPerturbation))
    torch.testing.assert_close(ours.x_t, theirs.x_t, rtol=1e-12, atol=0)


@pytest.mark.parametrize("w_max", [0.0, 0.5])
@pytest.mark.parametrize("rule", ["inverse-radius", "constant"])
def test_a_gaussian_weighs_as_the_box_of_its_standard_deviation(rule: Any, w_max: float) -> None:
    """Both rules and the cap see the spread of delta, not the box that cuts it."""
    weights = []
    for component in (GaussianSmoothing, RayRandom):
        made, x0 = stage(component, component.Settings())
        term = made.make(Equivariance, Equivariance.Settings(weight_rule=rule, w_max=w_max))
        plain = Equivariance.Settings(weight_rule="constant", w_max=0.0)
        turn = Turn("student", {"a": term, "b": made.make(Equivariance, plain)})
        losses = run_step(made, [turn], x0).losses
        weights.append(losses["a"] / losses["b"])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("below", ["drop", "taper"])
def test_samples_near_the_data_weigh_less(below: Any) -> None:
    """Nothing, or the square of their share of noise; from min_sigma on, what they weighed."""
    made, x0 = stage(RayRandom)
    full, less = (
        made.make(Invariance, Invariance.Settings(min_sigma=least, below=below))
        for least in (0.0, 0.5)
    )
    losses = run_step(made, [Turn("student", {"full": full, "less": less})], x0).losses
    share = rays.noise_share(views_of(made, x0)[0])
    few = share < 0.5
    assert 2 <= few.sum() < 14
    factor = torch.where(few, torch.zeros_like(share) if below == "drop" else 4 * share**2, 1.0)
    torch.testing.assert_close(losses["less"], factor * losses["full"], rtol=1e-12, atol=0)
    edge = low_noise_factor(torch.tensor([0.5]).double(), 0.5, below)
    assert edge.item() == 1


PLAIN = {
    "advdiff": 1,
    "run": {"images": 64, "batch": 16, "seed": 3, "precision": "fp32", "threads": 1},
    "data": {"use": "two-moons", "count": 90},
    "models": {"student": {"use": "mlp", "width": 16, "blocks": 1, "dropout": 0.1}},
    "terms": {"denoise": {"use": "denoise"}},
    "players": {
        "student": {
            "terms": ["denoise"], "optimizer": {"use": "adamw", "lr": 1e-2}, "clip": 1.0,
            "ema": [0.9],
        }
    },
}  # fmt: skip


def joined(perturb: dict[str, Any], **term: Any) -> dict[str, Any]:
    """The plain recipe with a regulariser."""
    both = {"student": {**PLAIN["players"]["student"], "terms": ["denoise", "equivariance"]}}
    return {
        **PLAIN,
        "views": {"adv": {"from": "clean", "perturb": perturb}},
        "terms": {**PLAIN["terms"], "equivariance": {"use": "equivariance", **term}},
        "players": both,
    }


def trained(tables: dict[str, Any], steps: int = 6) -> dict[str, Tensor]:
    """Weights and averages after some steps."""
    trainer = Trainer(
        assemble(recipe_from_dict(tables)), world=World(), ticks=None, stop=StopFlag()
    )
    for _ in range(steps):
        trainer.train_step()
    shadow = trainer.experiment.players[0].emas["student"][0].shadow
    weights = trainer.scene.roles["student"].module.state_dict()
    return {**weights, **{f"ema.{name}": value for name, value in shadow.items()}}


NOTHING = {"bias": "multiplicative", "gamma": 0.0, "beta_max": 0.0}
OFF = {
    "radius 0": joined({"use": "ray-fgsm", **NOTHING}),
    "radius 0, random": joined({"use": "ray-random", **NOTHING}),
    "lambda 0": joined({"use": "ray-fgsm"}, weight=0.0),
    "not begun": joined({"use": "ray-fgsm"}, after=10_000),
    "min_sigma above all": joined({"use": "ray-fgsm"}, min_sigma=0.99999999),
}


@pytest.mark.parametrize("name", OFF)
def test_a_regulariser_that_is_off_leaves_every_bit_of_ddpm(name: str) -> None:
    """Weights and averages after six steps with clipping and dropout are those without it."""
    plain, off = trained(PLAIN), trained(OFF[name])
    assert plain.keys() == off.keys()
    for key, value in plain.items():
        assert torch.equal(value, off[key]), key
    on = trained(joined({"use": "ray-fgsm"}))
    assert any(not torch.equal(value, on[key]) for key, value in plain.items())


RECIPE = """
advdiff = 1
[run]
name = "bad"
images = 512
batch = 8
checkpoint_every = 16
log_every = 16
threads = 1
precision = "fp32"
[data]
use = "two-moons"
count = 40
[models.student]
use = "mlp"
width = 16
blocks = 1
[views.adv]
from = "clean"
perturb = { use = "ray-fgsm" }
[terms.denoise]
use = "denoise"
[terms.equivariance]
use = "equivariance"
weight = 0.3
[players.student]
terms = ["denoise", "equivariance"]
optimizer = { use = "adamw", lr = 1e-2 }
[sample]
use = "ddim"
steps = 2
images = 4
"""

REFUSED = [
    ("views.adv.perturb.gamma=-0.1", "views.adv.perturb.gamma", "-0.1 must be at least 0"),
    ("views.adv.perturb.omega=0", "views.adv.perturb.omega", "must be above 0"),
    ("views.adv.perturb.omega=-1.5", "views.adv.perturb.omega", "-1.5 must be above 0"),
    ("views.adv.perturb.step_scale=0", "views.adv.perturb.step_scale", "must be above 0"),
    ("views.adv.perturb.steps=0", "views.adv.perturb.steps", "must be at least 1"),
    ("views.adv.perturb.unit=pixel", "views.adv.perturb.unit", "'pixel'"),
    ("terms.equivariance.w_max=-1", "terms.equivariance.w_max", "must be at least 0"),
    ("terms.equivariance.min_sigma=1.0", "terms.equivariance.min_sigma", "must be below 1"),
    ("terms.equivariance.shift=exactly", "terms.equivariance.shift", "'exactly'"),
    ("terms.equivariance.ramp=-5", "terms.equivariance.ramp", "must be at least 0"),
    ("terms.equivariance.view=clean", "terms.equivariance.view", "no perturbed view"),
]


@pytest.mark.parametrize(("override", "key", "words"), REFUSED, ids=[one[0] for one in REFUSED])
def test_numbers_without_meaning_are_refused_before_the_run(
    override: str, key: str, words: str
) -> None:
    """Each fault names its key, what was found and what is wanted."""
    with pytest.raises(RecipeError) as caught:
        assemble(loads_recipe(RECIPE, overrides=[override]))
    (fault,) = caught.value.faults
    assert fault.key == key
    assert words in f"{fault.message} {fault.fix}"


def silent_schedule(monkeypatch: pytest.MonkeyPatch) -> VPLinear:
    """A schedule without noise at its first time."""
    schedule = VPLinear(VPLinear.Settings(), Build())
    noisy = schedule.sigma

    def sigma(t: Tensor) -> Tensor:
        found = noisy(t)
        return torch.where(t <= schedule.t_min * 1.001, torch.zeros_like(found), found)

    monkeypatch.setattr(schedule, "sigma", sigma)
    return schedule


@pytest.mark.parametrize("component", [RayFGSM, RayRandom, GaussianSmoothing])
def test_a_schedule_without_noise_at_a_drawn_time_is_refused(
    component: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the ray and the term name the time, and say what to do."""
    silent = silent_schedule(monkeypatch)
    with pytest.raises(RecipeError, match=r"sigma is 0 at t = 0\.001, a training time") as caught:
        stage(component, schedule=silent)
    fault = caught.value.faults[0]
    assert (fault.code, fault.key) == ("R10", "schedule")
    assert (
        fault.fix == "use a schedule, or a t_min of its, with sigma above 0 at every training time"
    )
    made = build_stage(
        data=DATA, models={"student": Model(MLP)}, schedule=silent,
        views={"adv": Moved("clean", InputPerturbation)},
    )  # fmt: skip
    with pytest.raises(RecipeError, match="sigma is 0 at t"):
        made.make(Equivariance)


@pytest.mark.parametrize("component", [RayFGSM, GaussianSmoothing, InputPerturbation])
def test_images_have_no_noise_level(component: Any) -> None:
    """A ray on a view of images is refused at the key that says so."""
    made = build_stage(
        data=DATA, models={"student": Model(MLP)}, views={"adv": Moved("image", component)}
    )
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("adv"),))
    with pytest.raises(RecipeError, match="which have no noise level") as caught:
        Plan([phase], made.scene)
    assert caught.value.faults[0].key == "views.adv.from"


def test_an_invariance_that_diverges_stops_with_one_line_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 6; the checkpoint before it is whole, and holds finite weights."""
    recipe = tmp_path / "bad.toml"
    text = RECIPE.replace('use = "equivariance"', 'use = "invariance"\nw_max = 0\nafter = 48')
    recipe.write_text(text.replace("weight = 0.3", "weight = 1e38"))
    assert main(["train", str(recipe), "--out", str(tmp_path)]) == 6
    error = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in error if line.startswith("advdiff: error")]
    assert len(lines) == 1
    assert lines[0].startswith("advdiff: error[N0")
    assert "no weight has moved" in lines[0]
    assert "lower the learning rate, set players.*.clip" in lines[0]
    assert not any("Traceback" in line for line in error)
    run = tmp_path / "00000-bad"
    path, skipped = newest_valid(run / "checkpoints")
    assert path is not None
    assert not skipped
    assert load(path).nimg >= 48
    assert all(v.isfinite().all() for v in load(path).shared["models"]["student"].values())
