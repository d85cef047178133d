"""KID, inception score, precision and recall against torch-fidelity; memorization."""

import json

import pytest
import torch
from advdiff_metrics.inception_score import InceptionScore
from advdiff_metrics.kernel import KID
from advdiff_metrics.memorization import Memorization
from advdiff_metrics.neighbours import nearest_of
from advdiff_metrics.precision_recall import PrecisionRecall
from advdiff_metrics.spaces import Space
from helpers_metrics import FakeEvaluation, images, metric
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from advdiff_core.errors import DataError, StorageError
from advdiff_core.math.statistics import Moments, frechet_distance
from advdiff_core.types import DataInfo, Domain

VIT = {"features": "timm:test_vit", "unpublished": True, "size": 32}
A = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
B = torch.randn(50, 12, generator=torch.Generator().manual_seed(1)) * 1.2 + 0.3
DATA = DataInfo(shape=(3, 32, 32), count=50, domain=Domain(-1.0, 1.0), classes=10)


def _given(monkeypatch, component, **keys):
    """A metric that finds the features A for samples and B for data."""
    monkeypatch.setattr(Space, "samples", lambda self, e: A)
    monkeypatch.setattr(Space, "clean", lambda self, e: B)
    return metric(component, **keys), FakeEvaluation()


def test_frechet_distance_equals_torch_fidelitys():
    """Within 1e-4 on the same features, streamed here in parts."""
    stats = [fid_features_to_statistics(x.double()) for x in (A, B)]
    wanted = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    found = frechet_distance(Moments.of(A, rows=7), Moments.of(B, rows=11))
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("subset", [20, 50])
def test_kid_equals_torch_fidelitys(monkeypatch, subset):
    """Same features in the same order, subsets and seed; another seed gives another number."""
    made, evaluation = _given(monkeypatch, KID, **VIT, subsets=5, subset=subset, seed=7)
    order = [x[x.double().sum(1).argsort()] for x in (A, B)]
    wanted = kid_features_to_metric(
        *order, kid_subsets=5, kid_subset_size=subset, rng_seed=7, verbose=False
    )
    found = made.compute(evaluation)
    assert list(found) == ["kernel_distance_test_vit", "kernel_distance_test_vit_std"]
    assert list(found.values()) == pytest.approx(list(wanted.values()), rel=1e-4, abs=1e-7)
    assert evaluation.notes == []
    if subset == 20:
        other, _ = _given(monkeypatch, KID, **VIT, subsets=5, subset=subset, seed=8)
        assert other.compute(evaluation) != found


def test_kid_says_when_its_subsets_are_smaller(monkeypatch):
    """50 images cannot give subsets of 1,000; the protocol gets a note."""
    made, evaluation = _given(monkeypatch, KID, **VIT, subsets=2)
    made.compute(evaluation)
    assert evaluation.notes == ["subsets of 50: there are no 1000 images"]


def test_inception_score_equals_torch_fidelitys(monkeypatch, tmp_path):
    """Same logits in the same order, splits and seed."""
    (tmp_path / "w.pth").write_bytes(b"never read")
    keys = {"weights": tmp_path / "w.pth", "unpublished": True, "splits": 3, "seed": 5}
    made, evaluation = _given(monkeypatch, InceptionScore, **keys)
    wanted = isc_features_to_metric(A[A.double().sum(1).argsort()], 3, True, 5)
    found = made.compute(evaluation)
    assert found["inception_score_unpublished"] == pytest.approx(
        wanted["inception_score_mean"], rel=1e-4
    )
    assert found["inception_score_std_unpublished"] == pytest.approx(
        wanted["inception_score_std"], rel=1e-4
    )
    assert made.protocol()["reference"] == 0
    many, evaluation = _given(monkeypatch, InceptionScore, **{**keys, "splits": 100})
    many.compute(evaluation)
    assert evaluation.notes == ["60 splits: there are no more samples"]


@pytest.mark.parametrize("neighbours", [1, 3, 10])
def test_precision_and_recall_equal_torch_fidelitys_and_the_definition(monkeypatch, neighbours):
    """The library's whole-matrix version, and the definition by plain distances in float64."""
    made, evaluation = _given(monkeypatch, PrecisionRecall, **VIT, neighbours=neighbours)
    found = made.compute(evaluation)
    wanted = prc_features_to_metric(
        A, B, prc_neighborhood=neighbours, prc_batch_size=64, save_cpu_ram=False, verbose=False
    )
    assert found["precision_test_vit"] == pytest.approx(wanted["precision"], rel=1e-4)
    assert found["recall_test_vit"] == pytest.approx(wanted["recall"], rel=1e-4)
    a, b = A.double(), B.double()
    radius = (b[:, None] - b).norm(dim=2).kthvalue(neighbours + 1, dim=1).values
    inside = ((a[:, None] - b).norm(dim=2) <= radius).any(1)
    assert found["precision_test_vit"] == pytest.approx(float(inside.double().mean()))


def test_precision_of_too_few_images_is_refused(monkeypatch):
    """50 images have no 50 neighbours."""
    made, evaluation = _given(monkeypatch, PrecisionRecall, **VIT, neighbours=50)
    with pytest.raises(DataError, match="50 images have no 50 neighbours") as found:
        made.compute(evaluation)
    assert found.value.fix == "raise evaluate.num, or lower neighbours"


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 999))
def test_nearest_is_the_largest_cosine(count, other, seed):
    """Against every pair; a set is never its own neighbour."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(count, 5, generator=generator)
    b = torch.randn(other, 5, generator=generator)
    every = torch.nn.functional.cosine_similarity(a[:, None], b, dim=2)
    found = nearest_of(a, b)
    torch.testing.assert_close(found.similarity, every.max(1).values, rtol=1e-4, atol=1e-5)
    among = torch.nn.functional.cosine_similarity(a[:, None], a, dim=2).fill_diagonal_(-2)
    torch.testing.assert_close(
        nearest_of(a, a, same=True).similarity, among.max(1).values, rtol=1e-4, atol=1e-5
    )


def _memorized(tmp_path, samples, **keys):
    evaluation = FakeEvaluation(samples=samples, clean=images(30), folder=tmp_path)
    evaluation.info = DATA
    return metric(Memorization, DATA, **VIT, **keys), evaluation


def test_memorization_finds_copies(tmp_path):
    """Three of ten samples are training images: the share, the pairs, and their similarity of 1."""
    samples = torch.cat([images(30)[[4, 9, 20]], images(7, 1)])
    made, evaluation = _memorized(tmp_path, samples, threshold=0.99999)
    found = made.compute(evaluation)
    told = json.loads((tmp_path / "memorization.json").read_text())
    pairs = {(p["sample"], p["training_image"]) for p in told["nearest"][:3]}
    assert pairs == {(0, 4), (1, 9), (2, 20)}
    assert found["memorization_q100"] == pytest.approx(1, abs=1e-5)
    assert found["memorization_share"] == pytest.approx(0.3)
    assert found["memorization_share_data"] == 0
    assert sum(told["samples"]) == pytest.approx(1)
    assert sum(told["training_images"]) == pytest.approx(1)
    assert (len(told["edges"]), told["threshold"]) == (51, 0.99999)
    with Image.open(tmp_path / "memorization.png") as picture:
        assert picture.size == (640, 408)
        assert len(set(picture.get_flattened_data())) > 50


def test_memorization_takes_its_threshold_from_the_training_images(tmp_path):
    """Their 99 % quantile among themselves, so that about a hundredth of them lies above."""
    made, evaluation = _memorized(tmp_path, images(8, 1))
    found = made.compute(evaluation)
    assert found["memorization_threshold"] == found["memorization_q99_data"]
    assert found["memorization_share_data"] <= 1 / 15
    assert evaluation.notes == []
    few, evaluation = _memorized(tmp_path, images(8, 1), images=10)
    few.compute(evaluation)
    assert evaluation.notes == ["10 of 50 images were searched"]


def test_memorization_says_where_it_cannot_write(tmp_path):
    """S04 names the file."""
    made, evaluation = _memorized(tmp_path / "nowhere", images(8, 1))
    with pytest.raises(
        StorageError, match=r"nowhere.memorization.json: cannot be written"
    ) as found:
        made.compute(evaluation)
    assert found.value.code == "S04"


def test_nearest_knows_its_own_row_in_every_part(monkeypatch):
    """Rows compared in parts of 7 give what one part gives."""
    whole = nearest_of(A, A, same=True)
    monkeypatch.setattr("advdiff_metrics.neighbours.ROWS", 7)
    parts = nearest_of(A, A, same=True)
    torch.testing.assert_close(parts.similarity, whole.similarity)
    assert parts.row.tolist() == whole.row.tolist()
