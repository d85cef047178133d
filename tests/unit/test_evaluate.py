"""Evaluation of a run: ranges of seeds, metrics without samples, models from elsewhere, notes."""

import json
import math
from typing import ClassVar

import pytest
import torch
from attrs import evolve

from advdiff_core.engine.api import open_trained, train
from advdiff_core.engine.evaluate import spread
from advdiff_core.engine.evaluation import RunEvaluation
from advdiff_core.errors import DataError, RecipeError
from advdiff_core.interfaces.metric import Metric
from advdiff_core.metrics.wasserstein import SlicedWasserstein
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.settings import Spec

CLASSIFIER = {
    "run": {"images": 32, "batch": 16, "device": "cpu"},
    "data": {"use": "two-moons", "count": 60},
    "models": {"judge": {"use": "mlp", "width": 8, "outputs": 2, "parametrization": "none"}},
    "terms": {"ce": {"use": "cross-entropy", "role": "judge"}},
}
DENOISER = {
    "run": {"images": 32, "batch": 16, "device": "cpu"},
    "data": {"use": "two-moons", "count": 60},
    "models": {"student": {"use": "mlp", "width": 8}},
    "sample": {"use": "ddim", "steps": 2},
    "evaluate": {"num": 8, "metrics": [{"use": "sliced-wasserstein"}, {"use": "frechet"}]},
}


class Weightiness(Metric):
    """Norm of a network's weights; counts how often it is asked."""

    needs_samples = False
    calls: ClassVar[list[str]] = []

    def protocol(self):
        """Constant."""
        return {"norm": "l2"}

    def compute(self, evaluation):
        """The norm."""
        self.calls.append("compute")
        evaluation.note("weights alone")
        judge = evaluation.module("judge")
        with torch.no_grad():
            return {"weightiness": float(judge(torch.zeros(1, 2)).output.norm())}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained denoiser and a trained classifier."""
    folder = tmp_path_factory.mktemp("runs")
    denoiser = train(recipe_from_dict(DENOISER), out=folder)
    return denoiser.run, train(recipe_from_dict(CLASSIFIER), out=folder).run


def weighty(recipe):
    """The recipe with that metric."""
    spec = Spec(
        kind="metric", use="weightiness", settings=Weightiness.Settings(), component=Weightiness
    )
    return evolve(recipe, evaluate=evolve(recipe.evaluate, metrics=(spec,)))


def test_ranges_of_seeds_are_disjoint_and_each_is_as_if_alone(runs):
    """Range r has the seeds from seed + r num on; the number is the mean of the three."""
    alone = [
        open_trained(runs[0], overrides=[f"evaluate.seed={seed}"]).evaluate()["metrics"]
        for seed in (5, 13, 21)
    ]
    over = ["evaluate.seed=5", "evaluate.repeats=3"]
    found = open_trained(runs[0], overrides=over).evaluate()
    for name in ("sliced_wasserstein", "frechet"):
        values = [one[name] for one in alone]
        assert found["repeats"][name] == spread(values)
        assert found["metrics"][name] == pytest.approx(sum(values) / 3, rel=1e-12)
    told = found["protocols"]["frechet"]
    assert (told["seeds"], told["repeats"], told["samples"]) == ("5-28", 3, 8)
    assert told["value"] == "mean over 3 disjoint ranges of seeds"
    assert json.loads((runs[0] / "evaluation.json").read_text())["repeats"] == found["repeats"]


def test_spread_says_what_the_numbers_cover():
    """Each, the least, the mean, the largest, and largest minus least."""
    wanted = {"values": [3.0, 1.0, 5.0], "min": 1.0, "mean": 3.0, "max": 5.0, "spread": 4.0}
    assert spread([3.0, 1.0, 5.0]) == wanted


def test_one_range_has_no_spread(runs):
    """`repeats` is empty, and no protocol speaks of a mean."""
    found = open_trained(runs[0]).evaluate()
    assert found["repeats"] == {}
    assert "value" not in found["protocols"]["frechet"]


def test_classifier_is_measured_without_samples(tmp_path):
    """A recipe without a denoiser trains, and its metric is computed once, without a sampler."""
    Weightiness.calls.clear()
    recipe = weighty(recipe_from_dict({**CLASSIFIER, "evaluate": {"repeats": 3}}))
    found = train(recipe, out=tmp_path).evaluation
    assert Weightiness.calls == ["compute"]
    assert math.isfinite(found["metrics"]["weightiness"])
    assert found["owners"] == {"weightiness": "weightiness"}
    told = {"norm": "l2", "notes": ["weights alone"], "shape": [2], "domain": None}
    assert found["protocols"] == {"weightiness": told}


def test_metric_of_samples_is_refused_for_a_classifier():
    """Before the training, with the key and the mend."""
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict({**CLASSIFIER, "evaluate": {"metrics": [{"use": "frechet"}]}})
    fault = caught.value.faults[0]
    assert (fault.code, fault.key) == ("R10", "evaluate.metrics.0.use")
    assert fault.message == "'frechet' measures samples, and no model of this recipe is a denoiser"
    assert fault.fix == "take it out, or give a backbone a parametrization"


def test_frechet_takes_the_tap_of_a_model_from_elsewhere(runs):
    """A frozen judge with the weights of another run is added to a finished one."""
    judge = "{use='mlp', width=8, outputs=2, parametrization='none', frozen=true, init='%s'}"
    metric = "{use='frechet', features='tap', role='judge', tap='block.1'}"
    over = [f"models.judge={judge % runs[1]}", f"evaluate.metrics=[{metric}]"]
    trained = open_trained(runs[0], overrides=over)
    wanted = open_trained(runs[1]).experiment.scene.roles["judge"].module.state_dict()
    found = trained.experiment.scene.roles["judge"].module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert trained.evaluate()["metrics"]["frechet_judge_block.1"] > 0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.count=50", "data.count"),
        ("models.student.width=9", "models.student.width"),
        ("models.judge={use='mlp', frozen=true}", "models.judge"),
    ],
)
def test_what_was_learnt_cannot_be_changed_afterwards(runs, override, key):
    """R15 names the key; a model without weights of its own is none to measure with."""
    with pytest.raises(DataError, match=f"{key} was") as caught:
        open_trained(runs[0], overrides=[override])
    assert caught.value.code == "R15"
    assert caught.value.fix == "set keys of evaluate and sample, or add a frozen model with init"


def test_evaluation_reads_the_data_once_and_only_if_asked(runs, tmp_path, monkeypatch):
    """`clean` is read at its first use; `data` are the same tensor where nothing is damaged."""
    trained = open_trained(runs[0])
    reads = []
    source = trained.experiment.source
    batch = source.dataset.batch
    monkeypatch.setattr(source.dataset, "batch", lambda i: reads.append(len(i)) or batch(i))
    evaluation = RunEvaluation(trained.experiment, tmp_path)
    assert (reads, evaluation.fingerprint) == ([], source.dataset.fingerprint())
    assert evaluation.data is evaluation.clean
    assert (len(evaluation.labels), reads) == (60, [60])


def test_evaluation_remembers_what_was_made(runs, tmp_path):
    """One value a key, also if it is None."""
    evaluation = RunEvaluation(open_trained(runs[0]).experiment, tmp_path)
    made = []
    for key in ("a", "b", "a"):
        evaluation.remember(key, lambda key=key: made.append(key))
    assert made == ["a", "b"]


def test_core_metrics_do_their_part_on_the_data_once(runs, monkeypatch):
    """Over three ranges of seeds, frechet takes the moments of the real data once."""
    from advdiff_core.math.statistics import Moments

    sizes = []
    of = Moments.of
    monkeypatch.setattr(Moments, "of", lambda x, **how: sizes.append(len(x)) or of(x, **how))
    open_trained(runs[0], overrides=["evaluate.repeats=3", "evaluate.num=7"]).evaluate()
    assert sorted(sizes) == [7, 7, 7, 60]
    assert SlicedWasserstein.needs_samples
