"""Accuracy: counts, interval, domains, refusals, and a whole run of a classifier."""

import json
import math
from types import SimpleNamespace

import pytest
import scipy.stats
import torch
from advdiff_metrics.accuracy import Accuracy
from helpers_metrics import CLASSIFIER, FakeEvaluation, metric
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.errors import DataError, NumericsError, RecipeError
from advdiff_core.interfaces.component import ModelInfo
from advdiff_core.math.statistics import wilson
from advdiff_core.settings import Spec
from advdiff_core.types import Batch, DataInfo, Domain

MODELS = {"student": CLASSIFIER}


class _Classifier(torch.nn.Module):
    """Logits of K classes from the first value of an image: class k at value k / 10."""

    def __init__(self, classes=10):
        super().__init__()
        self.classes = classes

    def forward(self, x, c_noise, labels):
        assert c_noise is None
        assert labels is None
        value = x.flatten(1)[:, :1] * 10
        return SimpleNamespace(output=-(value - torch.arange(self.classes)).abs())


def _labelled(count=20, wrong=(3, 7), classes=10):
    """Images [N, 3, 2, 2] of class i mod K, with wrong labels at some places."""
    y = torch.arange(count) % classes
    x = (y / 10)[:, None, None, None].expand(-1, 3, 2, 2).clone()
    y[list(wrong)] = (y[list(wrong)] + 5) % classes
    return x, y


def _evaluation(x, y, classes=10):
    return FakeEvaluation(clean=x, labels=y, modules={"student": _Classifier(classes)})


@given(st.integers(1, 400), st.data(), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_interval_equals_scipys(count, data, confidence):
    """Both ends, for every count and coverage."""
    hits = data.draw(st.integers(0, count))
    test = scipy.stats.binomtest(hits, count)
    wanted = test.proportion_ci(confidence_level=confidence, method="wilson")
    found = wilson(hits, count, confidence)
    assert found == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("batch", [3, 20, 64])
def test_accuracy_counts_what_is_named_right(batch):
    """18 of 20, whatever the batch; the loss is the mean cross-entropy."""
    x, y = _labelled()
    evaluation = _evaluation(x, y)
    found = metric(Accuracy, models=MODELS, batch=batch).compute(evaluation)
    assert found["train_accuracy"] == 0.9
    low, high = wilson(18, 20)
    assert (found["train_accuracy_low"], found["train_accuracy_high"]) == (low, high)
    logits = _Classifier()(x, None, None).output
    wanted = torch.nn.functional.cross_entropy(logits.double(), y)
    assert found["train_cross_entropy"] == pytest.approx(float(wanted), rel=1e-6)
    fifth = (logits.topk(5).indices == y[:, None]).any(1).double().mean()
    assert found["train_accuracy_top5"] == float(fifth)
    assert evaluation.notes == ["20 training images"]


def test_accuracy_of_few_classes_has_no_top_five():
    """Five of five are always right."""
    found = metric(Accuracy, models=MODELS).compute(_evaluation(*_labelled(10, (), 5), 5))
    assert set(found) == {
        "train_accuracy", "train_accuracy_low", "train_accuracy_high", "train_cross_entropy"
    }  # fmt: skip


def test_accuracy_of_the_first_images_alone():
    """`images` cuts the data."""
    x, y = _labelled(20, wrong=(1, 19))
    found = metric(Accuracy, models=MODELS, images=10).compute(_evaluation(x, y))
    assert found["train_accuracy"] == 0.9


class _Pixels:
    """A dataset of [0, 1] images."""

    def __init__(self, x, y, shape=(3, 2, 2), classes=10):
        self.x, self.y = x, y
        self.info = DataInfo(shape=shape, count=len(x), domain=Domain(0.0, 1.0), classes=classes)

    def batch(self, indices):
        return Batch(self.x[indices], None if self.y is None else self.y[indices])

    def fingerprint(self):
        return "abc"


def _nested(dataset, **keys):
    data = DataInfo(shape=(3, 2, 2), count=5, domain=Domain(-1.0, 1.0), classes=10)
    spec = Spec(kind="dataset", use="pixels", settings=None, component=_Pixels)
    return metric(Accuracy, data, MODELS, lambda _: dataset, data=spec, **keys)


def test_accuracy_of_other_data_comes_in_the_classifiers_range():
    """Images in [0, 1] reach a classifier of [-1, 1] as 2 x - 1."""
    x, y = _labelled()
    seen = []

    class _Watch(_Classifier):
        def forward(self, x, *rest):
            seen.append(x)
            return super().forward((x + 1) / 2, *rest)

    evaluation = FakeEvaluation(clean=-2 * x, labels=y, modules={"student": _Watch()})
    made = _nested(_Pixels(x, y))
    assert made.compute(evaluation)["accuracy"] == 0.9
    torch.testing.assert_close(torch.cat(seen), 2 * x - 1)
    told = made.protocol()
    assert (told["data"], told["fingerprint"], told["images"]) == ("pixels", "abc", 20)
    assert told["interval"] == "Wilson, 95 %"
    json.dumps(told, allow_nan=False)


def test_images_that_were_trained_on_are_counted():
    """D11: copies are found through another range and rounding to 8 bits; others are not."""
    levels = torch.randint(0, 256, (6, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    trained = levels / 127.5 - 1
    others = trained[:4].flip(3)
    x = torch.cat([levels[[1, 4]] / 255, (others + 1) / 2])
    evaluation = FakeEvaluation(
        clean=trained, labels=torch.zeros(6), modules={"student": _Classifier()}
    )
    _nested(_Pixels(x, torch.zeros(6, dtype=torch.int64)), batch=4).compute(evaluation)
    assert evaluation.notes == [
        "2 of 6 images are among the 6 training images they were compared with"
    ]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (_Pixels(torch.zeros(3, 3, 4, 4), None, (3, 4, 4)), r"are \[3, 4, 4\], the classifier's"),
        (_Pixels(torch.zeros(3, 3, 2, 2), None, classes=0), "the data have no labels"),
    ],
)
def test_accuracy_refuses_data_it_cannot_use(dataset, message):
    """Before the run, with the key."""
    with pytest.raises(RecipeError, match=message) as caught:
        _nested(dataset)
    assert caught.value.faults[0].key == "evaluate.metrics.0.data"


@pytest.mark.parametrize(
    "models", [{}, {"student": ModelInfo(kind="backbone", frozen=False, parametrization="eps")}]
)
def test_accuracy_refuses_what_is_no_classifier(models):
    """A denoiser has no logits."""
    with pytest.raises(RecipeError, match="'student' is no classifier") as caught:
        metric(Accuracy, models=models)
    assert caught.value.faults[0].fix == 'name a backbone with parametrization = "none"'


def test_accuracy_names_the_image_whose_label_is_no_class():
    """Index and label are in the message."""
    x, y = _labelled()
    y[12] = 10
    with pytest.raises(DataError, match="image 12 has label 10, the classifier has 10 classes"):
        metric(Accuracy, models=MODELS, batch=8).compute(_evaluation(x, y))


def test_accuracy_refuses_images_without_labels_and_networks_without_logits():
    """One line each."""
    x, _ = _labelled()
    with pytest.raises(DataError, match="the images have no labels"):
        metric(Accuracy, models=MODELS).compute(_evaluation(x, None))
    picture = SimpleNamespace(output=x)
    evaluation = FakeEvaluation(
        clean=x, labels=torch.zeros(20).long(), modules={"student": lambda *_: picture}
    )
    with pytest.raises(DataError, match=r"returned \[20, 3, 2, 2\], wanted one logit per class"):
        metric(Accuracy, models=MODELS).compute(evaluation)


def test_accuracy_is_not_computed_of_logits_that_are_not_finite():
    """E22 names where they begin."""
    x, y = _labelled()
    x[9] = math.nan
    with pytest.raises(NumericsError, match="logits are not finite from image 8 on") as caught:
        metric(Accuracy, models=MODELS, batch=8).compute(_evaluation(x, y))
    assert caught.value.code == "E22"


def test_classifier_trains_and_is_evaluated_and_reported(tmp_path, monkeypatch, capsys):
    """A recipe with a classifier and accuracy alone goes from train to report, without samples."""
    from advdiff_core.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "moons.toml").write_text(
        """
[run]
images = 2_000
batch = 50
device = "cpu"
[data]
use = "two-moons"
count = 200
[models.judge]
use = "mlp"
width = 32
outputs = 2
parametrization = "none"
[terms.ce]
use = "cross-entropy"
role = "judge"
[players.judge]
optimizer = { use = "adamw", lr = 0.01 }
[evaluate]
repeats = 3
metrics = [
    { use = "accuracy", role = "judge", data = { use = "two-moons", count = 100, seed = 5 } },
    { use = "accuracy", role = "judge" },
]
"""
    )
    assert main(["train", "moons.toml", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)["metrics"]
    assert trained["accuracy"] > 0.9
    assert trained["train_accuracy#2"] > 0.9
    again = ["evaluate", "runs/00000-moons", "-s", "evaluate.metrics.0.images=10", "--json"]
    assert main(again) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["protocols"]["accuracy"]["images"] == 10
    assert "sampler" not in found["protocols"]["accuracy"]
    assert (found["repeats"], found["metrics"]["train_accuracy#2"]) == (
        {}, trained["train_accuracy#2"]
    )  # fmt: skip
    assert main(["report", "runs/00000-moons"]) == 0
    page = (tmp_path / "runs" / "00000-moons" / "report.html").read_text()
    assert "train_accuracy#2" in page
    assert "Wilson, 95 %" in page


def test_training_images_are_read_once_however_often_a_run_is_validated():
    """A later measurement counts the copies without reading the training data again."""
    x = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    made = _nested(_Pixels(x, torch.zeros(6, dtype=torch.int64)))
    first = FakeEvaluation(
        clean=2 * x[:2] - 1, labels=torch.zeros(2), modules={"student": _Classifier()}
    )
    later = FakeEvaluation(clean=None, labels=None, modules={"student": _Classifier()})
    assert made.compute(first) == made.compute(later)
    assert later.notes == first.notes
    assert "2 of 6 images are among the 2 training images" in later.notes[0]
