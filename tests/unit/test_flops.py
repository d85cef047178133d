"""Operations of a step against those that torch counts, and how much of a machine they use."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advdiff_core.engine import utilisation
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.flops import flops_of, flops_per_image, step_cost
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.size import flops_words, macs_of
from advdiff_core.engine.tick import Ticks
from advdiff_core.engine.trainer import Trainer
from advdiff_core.engine.utilisation import Utilisation, matrix_rate
from advdiff_core.hooks.jsonl import JsonLines
from advdiff_core.hooks.manager import Hooks
from advdiff_core.hooks.progress import Speed, plain_line, used
from advdiff_core.hooks.specs import RunInfo
from advdiff_core.recipe import load_recipe, recipe_from_dict
from advdiff_core.report.facts import facts
from advdiff_core.report.record import read_record
from advdiff_core.step.plan import Pass

PLAYERS = Path(__file__).parents[1] / "recipes" / "players.toml"
BATCH = 4


def tables(**more):
    """Digits-like noise, a U-Net with attention, one term."""
    found = {
        "run": {"images": 64, "batch": BATCH, "micro_batch": BATCH, "precision": "fp32",
                "device": "cpu"},
        "data": {"use": "two-moons", "count": 64},
        "models": {"student": {"use": "mlp", "width": 64, "blocks": 2}},
        "terms": {"denoise": {"use": "denoise"}},
        "players": {"student": {"terms": ["denoise"]}},
    }  # fmt: skip
    return {**found, **more}


def trainer_of(recipe, index=2):
    """A trainer past the contract checks."""
    made = Trainer(assemble(recipe), world=World(), ticks=None, stop=StopFlag())
    made.index = index
    return made


def counted(trainer):
    """Operations per image of the next step, as torch counts them."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        trainer.train_step()
    return counter.get_total_flops() / BATCH


@pytest.mark.parametrize("index", [0, 1])
def test_planned_operations_are_those_torch_counts(index):
    """Views, searches, several players, shared graphs and frozen roles.

    But for layers that no gradient towards an input passes: the first one and those of the time.
    """
    pytest.importorskip("advdiff_datasets")
    images = ("data.use=digits", "models.student.use=unet", "run.precision=fp32")
    recipe = load_recipe(PLAYERS, [f"run.batch={BATCH}", f"run.micro_batch={BATCH}", *images])
    trainer = trainer_of(recipe, index)
    planned = flops_of(trainer.experiment, step_cost(trainer.experiment, index=index, nimg=0))
    assert planned == pytest.approx(counted(trainer), rel=0.01)


def test_one_step_of_denoising_is_three_forwards():
    """One forward, and a backward of twice its products."""
    made = assemble(recipe_from_dict(tables()))
    macs = macs_of(made.scene.roles["student"].module, "backbone", made.source.info)
    assert flops_per_image(made) == 2 * 3 * macs
    cost = step_cost(made)
    assert dict(cost.passes) == {
        Pass("student", None, "forward"): 1, Pass("student", None, "parameter"): 1,
    }  # fmt: skip


ADVERSARIAL = {
    "views": {"adv": {"from": "clean", "perturb": {"use": "ray-fgsm"}}},
    "terms": {
        "denoise": {"use": "denoise"},
        "equivariance": {"use": "equivariance", "view": "adv", "after": 32},
    },
    "players": {"student": {"terms": ["denoise", "equivariance"]}},
}


def test_equivariance_costs_eight_thirds_of_a_plain_step():
    """Three forwards, a backward to the input, and one to the parameters through two of them."""
    pytest.importorskip("advdiff_robustadv")
    plain = flops_per_image(assemble(recipe_from_dict(tables())))
    made = assemble(recipe_from_dict(tables(**ADVERSARIAL)))
    assert flops_per_image(made) == pytest.approx(8 / 3 * plain, rel=1e-12)


def test_terms_that_have_not_begun_cost_nothing():
    """Their views are not searched either."""
    pytest.importorskip("advdiff_robustadv")
    made = assemble(recipe_from_dict(tables(**ADVERSARIAL)))
    plain = flops_per_image(assemble(recipe_from_dict(tables())))
    assert flops_per_image(made, nimg=0) == plain
    assert flops_per_image(made, nimg=32) == flops_per_image(made)


def test_player_of_every_third_step_costs_a_third():
    """The average is over the cycle of steps."""
    pytest.importorskip("advdiff_robustadv")
    plain = flops_per_image(assemble(recipe_from_dict(tables())))
    two = tables()
    two["models"]["other"] = dict(two["models"]["student"])
    two["terms"]["second"] = {"use": "denoise", "role": "other"}
    two["players"]["other"] = {"terms": ["second"], "every": 3}
    assert flops_per_image(assemble(recipe_from_dict(two))) == pytest.approx(plain * 4 / 3)


def test_stop_at_a_tap_costs_its_part():
    """An early tap costs less than the whole forward, and the last one nearly all of it."""
    made = assemble(recipe_from_dict(tables()))
    role = made.scene.roles["student"]
    whole = macs_of(role.module, "backbone", made.source.info)
    parts = [
        macs_of(role.module, "backbone", made.source.info, stop_at=tap) for tap in role.info.taps
    ]
    assert parts == sorted(parts)
    assert 0 < parts[0] < parts[-1] <= whole


def test_plan_tells_the_operations(capsys):
    """As a line and in its JSON; the plan of a run that begins does not wait for them."""
    made = assemble(recipe_from_dict(tables()))
    report = plan_experiment(made, macs=True)
    flops = flops_per_image(made)
    assert report.as_json()["flops_per_image"] == flops
    assert f"  {flops_words(flops)} per image of training" in report.lines()
    assert "flops_per_image" not in plan_experiment(made).as_json()


@pytest.mark.parametrize(
    ("flops", "words"),
    [(18.52e9, "18.5 GFLOP"), (2e12, "2 TFLOP"), (1500, "1.5 kFLOP"), (0.0, "0 FLOP")],
)
def test_operations_are_told_in_a_fitting_unit(flops, words):
    """Three digits and a unit."""
    assert flops_words(flops) == words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_rate_is_operations_over_seconds(dtype, monkeypatch):
    """The best round counts: whatever else the machine does only makes one slower."""
    clock = iter([0.0, *(value for n in (4.0, 2.0, *[5.0] * 7) for value in (10.0, 10.0 + n, 0.1))])
    monkeypatch.setattr(utilisation.time, "perf_counter", lambda: next(clock))
    assert matrix_rate(torch.device("cpu"), dtype, sides=(16,)) == 2 * 16**3 / 2.0


def test_matrix_rate_of_this_machine_is_of_this_world():
    """Between a million and a quadrillion operations per second."""
    assert 1e6 < matrix_rate(torch.device("cpu"), torch.float32, sides=(128,)) < 1e15


def test_utilisation_is_measured_late_and_once(monkeypatch):
    """Short runs do not wait for it; the rate counts for each process."""
    asked = []
    monkeypatch.setattr(utilisation, "matrix_rate", lambda *at: asked.append(at) or 1e9)
    trainer = trainer_of(recipe_from_dict(tables()))
    flops = flops_per_image(trainer.experiment)
    assert Utilisation().of(trainer, 1000.0) == {}
    found = Utilisation(after=0.0)
    expected = {"mfu": flops * 1000.0 / 1e9, "model_tflops": flops * 1000.0 / 1e12}
    assert found.of(trainer, 1000.0) == pytest.approx(expected)
    assert found.of(trainer, 500.0)["mfu"] == pytest.approx(expected["mfu"] / 2)
    trainer.world = World(rank=0, size=4)
    assert found.of(trainer, 1000.0)["mfu"] == pytest.approx(expected["mfu"] / 4)
    assert asked == [(torch.device("cpu"), torch.float32)]


def test_utilisation_counts_the_terms_of_the_moment(monkeypatch):
    """A term that begins later makes each image dearer from then on."""
    pytest.importorskip("advdiff_robustadv")
    monkeypatch.setattr(utilisation, "matrix_rate", lambda *at: 1e9)
    trainer = trainer_of(recipe_from_dict(tables(**ADVERSARIAL)))
    found = Utilisation(after=0.0)
    before = found.of(trainer, 1.0)["mfu"]
    trainer.nimg = 32
    assert found.of(trainer, 1.0)["mfu"] == pytest.approx(8 / 3 * before, rel=1e-12)


def test_network_that_looks_at_numbers_has_no_utilisation(monkeypatch):
    """Nothing can be said of it, and the run goes on."""
    monkeypatch.setattr(utilisation, "flops_per_image", lambda *_, **__: None)
    trainer = trainer_of(recipe_from_dict(tables()))
    assert Utilisation(after=0.0).of(trainer, 1.0) == {}


def test_run_logs_shows_and_reports_its_utilisation(tmp_path, monkeypatch):
    """In the log from the first tick after the time, in the progress line, and in the report."""
    monkeypatch.setattr(utilisation, "matrix_rate", lambda *at: 1e12)
    plain = Ticks.__attrs_attrs__
    assert [one.name for one in plain if one.name == "used"] == ["used"]
    monkeypatch.setattr(utilisation.Utilisation, "__init__", _eager(utilisation.Utilisation))
    hooks = Hooks()
    hooks.add(JsonLines(), name="jsonl")
    run = train(recipe_from_dict(tables(), ["run.log_every=32"]), out=tmp_path, hooks=hooks).run
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["mfu"] > 0 and row["model_tflops"] > 0 for row in rows)
    assert math.isclose(rows[0]["model_tflops"], rows[0]["mfu"], rel_tol=1e-9)
    shown = dict(facts(read_record(run)))["model operations"]
    assert shown.endswith("% of the 1 TFLOP/s of matrix products measured here (MFU)")


def _eager(cls):
    first = cls.__init__

    def init(self, *, after=0.0):
        first(self, after=after)

    return init


def test_progress_line_has_the_utilisation_once_it_is_known():
    """Behind the speed."""
    info = RunInfo(folder=Path("runs/x"), name="x", images=100, batch=10)
    line = plain_line(info, 50, Speed(0, 0.0), {"loss/denoise": 0.5, "mfu": 0.4123})
    assert "images/s  mfu 41.2 %  -:-- left  denoise 0.5" in line
    assert used({"loss/denoise": 0.5}) == ""
