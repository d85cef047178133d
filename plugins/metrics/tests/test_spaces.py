"""Inception and timm feature spaces: weights found, refused, read safely; provenance."""

import pickle

import pytest
import timm
import torch
from advdiff_metrics.extractor import features_of
from advdiff_metrics.files import read_tensors
from advdiff_metrics.frechet import FD, FID
from advdiff_metrics.inception import FILE, InceptionExtractor
from advdiff_metrics.inception_score import InceptionScore
from advdiff_metrics.kernel import KID
from advdiff_metrics.precision_recall import PrecisionRecall
from advdiff_metrics.timm_features import TimmExtractor
from helpers_metrics import FakeEvaluation, images, inception_weights, metric
from safetensors.torch import save_file

from advdiff_core.errors import DataError, RecipeError
from advdiff_core.types import Domain

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception():
    """Random weights, read the way real ones are."""
    extractor = InceptionExtractor(inception_weights(), unpublished=True, where="fid")
    extractor.check()
    return extractor


def test_inception_without_weights_says_what_to_put_where(tmp_path, monkeypatch):
    """No file and no leave to fetch one: the address, the place, and both keys in one line."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for component in (FID, InceptionScore, KID, PrecisionRecall):
        with pytest.raises(
            DataError, match=r"there are no Inception weights in .*6726825d"
        ) as found:
            metric(component)
        assert found.value.code == "D01"
        assert found.value.fix.startswith("put https://github.com/toshas/torch-fidelity/releases/")
        assert found.value.fix.endswith('name it with weights = "FILE", or set download = true')


def test_inception_is_fetched_when_asked_and_says_when_it_cannot(tmp_path, monkeypatch):
    """The published address and hash; without a network, where to put the file."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    asked = []

    def fetch(url, path, prefix, progress):
        asked.append((url.rpartition("/")[2], prefix))
        message = "no route"
        raise OSError(message)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(DataError, match="cannot be fetched: no route") as found:
        metric(FID, download=True)
    assert asked == [(FILE, "6726825d")]
    assert found.value.fix == f"put it at {tmp_path / 'checkpoints' / FILE}"


def test_other_weights_are_no_fid():
    """Refused by their hash; on demand they give a number of another name."""
    path = inception_weights()
    with pytest.raises(DataError, match=r"is not the published file.*wanted 6726825d") as found:
        metric(FID, weights=path)
    assert found.value.code == "D04"
    made = metric(FID, weights=path, unpublished=True)
    assert made.protocol()["weights"].startswith("NOT the published ones, sha256 ")


def test_inception_features_are_torch_fidelitys(inception):
    """The library's own network with these weights, on the 8-bit images, gives the same."""
    x = images(2)
    found = torch.cat(list(features_of(inception, x, Domain(-1.0, 1.0), batch=2, device=CPU)))
    eight = ((x + 1) / 2 * 255).round().to(torch.uint8)
    tensors = read_tensors(inception_weights(), where="fid")
    assert all(torch.equal(v, tensors[k]) for k, v in inception.net.state_dict().items())
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, inception.net(eight)[0])


def test_fid_of_the_data_themselves_is_nothing(tmp_path):
    """And that of others is something; the number is not called fid."""
    clean = images(6)
    evaluation = FakeEvaluation(samples=clean, clean=clean, folder=tmp_path)
    made = metric(FID, weights=inception_weights(), unpublished=True)
    assert made.compute(evaluation) == {"fid_unpublished": pytest.approx(0, abs=1e-6)}
    assert len(evaluation.notes) == 2


def test_inception_weights_of_another_network_are_refused(tmp_path):
    """S12 says which tensor is missing."""
    path = tmp_path / "other.safetensors"
    save_file({"fc.weight": torch.zeros(3, 3)}, path)
    evaluation = FakeEvaluation(samples=images(2), clean=images(2), folder=tmp_path)
    made = metric(FID, weights=path, unpublished=True)
    with pytest.raises(DataError, match=r"it lacks \d+ tensors, first Conv2d_1a") as found:
        made.compute(evaluation)
    assert found.value.code == "S12"


class _Trap:
    """Runs when a pickle is read."""

    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize(
    "content", [pickle.dumps(_Trap()), b"", b"no weights", pickle.dumps([1, 2])]
)
def test_files_are_read_as_tensors_and_nothing_is_run(tmp_path, content):
    """A pickle that runs code, an empty file, text: D02, and nothing has run."""
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as tensors") as found:
        read_tensors(path, where="fid")
    assert found.value.code == "D02"


def test_files_without_tensors_are_refused(tmp_path):
    """A table of numbers is no network; one inside `state_dict` is opened."""
    path = tmp_path / "weights.pth"
    torch.save({"epoch": 3}, path)
    with pytest.raises(DataError, match="holds no tensors"):
        read_tensors(path, where="fid")
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, path)
    assert read_tensors(path, where="fid")["w"].tolist() == [1, 1]


def test_timm_model_without_weights_is_refused():
    """Random weights only on demand."""
    with pytest.raises(DataError, match="test_vit has no weights") as found:
        metric(FD, settings_of=FD.settings_type("test_vit"))
    assert "pretrained = true" in found.value.fix
    told = metric(FD, settings_of=FD.settings_type("test_vit"), random=True).protocol()
    assert told["weights"].startswith("RANDOM")
    assert told["resize"] == "bicubic, antialias, 160 x 160, clipped to [0, 1]"


def test_timm_model_that_there_is_not_is_named():
    """The nearest name, or the tags there are."""
    with pytest.raises(ValueError, match="timm has no model 'test_vot'; did you mean 'test_vi"):
        FD.settings_type("test_vot")
    with pytest.raises(ValueError, match="timm has no weights 'nope' for 'test_vit'; there are"):
        FD.settings_type("test_vit.nope")
    with pytest.raises(RecipeError, match="found 'clip'"):
        metric(KID, features="clip")


def test_timm_features_are_timms_from_a_file(tmp_path):
    """A .safetensors file of the whole classifier: the features are what its head reads."""
    torch.manual_seed(1)
    net = timm.create_model("test_vit", img_size=32).eval()
    path = tmp_path / "vit.safetensors"
    save_file(net.state_dict(), path)
    extractor = TimmExtractor("test_vit", weights=path, size=32, where="fd")
    extractor.check()
    x = images(3)
    found = torch.cat(list(features_of(extractor, x, Domain(-1.0, 1.0), batch=3, device=CPU)))
    unit = ((x + 1) / 2 * 255).round() / 255
    with torch.no_grad():
        entering = extractor.prepare(unit)
        wanted = net.forward_head(net.forward_features(entering), pre_logits=True)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert extractor.provenance()["weights"].startswith("sha256 ")


def test_timm_file_that_does_not_fit_or_could_run_code_is_refused(tmp_path):
    """Missing, pickled, of another network."""
    for name, message in (("none.safetensors", "there is no file"), ("vit.pth", "other formats")):
        if name.endswith("pth"):
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=message):
            TimmExtractor("test_vit", weights=tmp_path / name, where="fd").check()
    path = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=r"does not fit test_vit: it lacks \d+ tensors") as found:
        _ = TimmExtractor("test_vit", weights=path, size=32, where="fd").net
    assert found.value.code == "S12"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"test_vit: .* does not fit it: ") as found:
        _ = TimmExtractor("test_vit", weights=path, size=32, where="fd").net
    assert found.value.code == "D02"


def test_random_weights_are_the_same_each_time_and_draw_nothing():
    """Two networks are equal; torch's global generator is where it was."""
    state = torch.random.get_rng_state()
    nets = [TimmExtractor("test_vit", random=True, size=32, where="fd").net for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in nets), strict=True)
    )
