"""Metrics as components: numbers by name, protocols, taps of a role, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from attrs import define, field, frozen
from PIL import Image

from advdiff_core.backbones.unet import UNet
from advdiff_core.datasets.points import ObliquePlane
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.backbone import BackboneOutput
from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.math.statistics import Moments, frechet_distance
from advdiff_core.metrics.frechet import Frechet, pooled_features
from advdiff_core.metrics.noise import ResidualNoise, excess
from advdiff_core.metrics.plane import PlaneDistance, fit_plane
from advdiff_core.metrics.wasserstein import SlicedWasserstein
from advdiff_core.types import DataInfo, Domain, TapInfo

IMAGES = DataInfo(shape=(1, 8, 8), count=100, domain=Domain(-1.0, 1.0))
POINTS = DataInfo(shape=(3,), count=100)


@define
class _Evaluation:
    samples: torch.Tensor
    clean: torch.Tensor
    data: torch.Tensor
    modules: dict = field(factory=dict)

    notes: list = field(factory=list)

    def module(self, role):
        return self.modules[role]

    def remember(self, key, make):
        return make()

    def note(self, text):
        self.notes.append(text)


def _metric(component, data=IMAGES, models=None, **settings):
    build = Build(path="evaluate.metrics[0]", data=data, models=models or {}, c_noise=(5.0, 1000.0))
    return component(component.Settings(**settings), build)


def _images(noise=0.0, count=300, seed=0):
    """Smooth images [N, 1, 8, 8] with white noise."""
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(-0.5, 0.5, 8)
    tilt = torch.randn(count, 2, 1, 1, generator=generator)
    smooth = tilt[:, :1] * ramp[:, None] + tilt[:, 1:] * ramp
    return smooth + noise * torch.randn(count, 1, 8, 8, generator=generator)


EVALUATION = _Evaluation(samples=_images(0.1, 200, 1), clean=_images(), data=_images(0.4, 300, 2))

METRICS = {
    "frechet": (Frechet, IMAGES, EVALUATION, {}),
    "sliced-wasserstein": (SlicedWasserstein, IMAGES, EVALUATION, {}),
    "residual-noise": (ResidualNoise, IMAGES, EVALUATION, {}),
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_finite_repeat_and_store_json(name):
    """The same numbers twice, plain floats, and a protocol that JSON holds."""
    component, data, evaluation, settings = METRICS[name]
    numbers = _metric(component, data, **settings).compute(evaluation)
    assert numbers == _metric(component, data, **settings).compute(evaluation)
    assert all(type(value) is float and math.isfinite(value) for value in numbers.values())
    json.dumps(_metric(component, data, **settings).protocol(), allow_nan=False)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_say_that_samples_are_cleaner_than_the_data(name):
    """Noise 0.1 beats noise 0.4: each number is below that of the data."""
    component, data, evaluation, settings = METRICS[name]
    numbers = _metric(component, data, **settings).compute(evaluation)
    key = name.replace("-", "_")
    assert 0 < numbers[key] < numbers[f"{key}_data"]


def test_residual_noise_finds_the_noise_of_samples_and_data():
    """0.1 and 0.4 on smooth images; the levels are those of the estimator."""
    numbers = _metric(ResidualNoise).compute(EVALUATION)
    assert numbers["residual_noise"] == pytest.approx(0.1, rel=0.05)
    assert numbers["residual_noise_data"] == pytest.approx(0.4, rel=0.05)
    assert numbers["noise_level_clean"] < 1e-6


def test_excess_keeps_the_sign():
    """Smoother than clean is negative."""
    assert excess(0.5, 0.3) == pytest.approx(0.4)
    assert excess(0.3, 0.5) == pytest.approx(-0.4)
    assert excess(0.3, 0.3) == 0


@pytest.mark.parametrize("data", [POINTS, DataInfo(shape=(1, 2, 8), count=1)])
def test_residual_noise_refuses_what_has_no_second_differences(data):
    """Images of 3x3 or more are wanted."""
    with pytest.raises(RecipeError, match='"residual-noise" needs images of 3x3 or more'):
        _metric(ResidualNoise, data)


def test_frechet_against_data_compares_with_what_was_seen():
    """The other reference gives another name, and 0 for the data themselves."""
    same = _Evaluation(samples=EVALUATION.data, clean=EVALUATION.clean, data=EVALUATION.data)
    numbers = _metric(Frechet, against="data").compute(same)
    assert numbers == {"frechet_to_data": pytest.approx(0, abs=1e-9)}
    numbers = _metric(SlicedWasserstein, against="data").compute(same)
    assert numbers == {"sliced_wasserstein_to_data": pytest.approx(0, abs=1e-9)}


def test_frechet_compares_with_as_many_real_samples_as_asked_for():
    """The first `images` real samples count, and the protocol says so where there are more."""
    metric = _metric(Frechet, images=50)
    clean, data = _images(), _images(0.1)
    found = metric.compute(_Evaluation(_images(0.2), clean, data))
    part = Moments.of(clean[:50])
    assert found["frechet"] == frechet_distance(Moments.of(_images(0.2)), part)
    assert found["frechet_data"] == frechet_distance(Moments.of(data[:50]), part)
    assert metric.protocol()["reference"] == 50
    assert "reference" not in _metric(Frechet, images=100).protocol()


@pytest.mark.parametrize(("count", "few"), [(64, True), (65, False)])
def test_frechet_says_when_there_are_too_few_samples(count, few):
    """64 samples have no covariance of full rank in 64 pixels; the number's protocol says so."""
    evaluation = _Evaluation(EVALUATION.samples[:count], EVALUATION.clean, EVALUATION.data)
    _metric(Frechet).compute(evaluation)
    told = "64 samples for 64 features: the covariance has not its full rank, the distance is"
    assert [note.startswith(told) for note in evaluation.notes] == [True] * few


def _judge():
    torch.manual_seed(0)
    settings = UNet.Settings(channels=8, channel_mult=(1, 2), blocks=1)
    net = UNet(settings, Build(path="models.judge", data=IMAGES)).eval()
    info = ModelInfo(kind="backbone", frozen=True, parametrization="eps", taps=net.taps)
    return net, {"judge": info}


def test_frechet_uses_the_tap_of_a_role():
    """Features are the tap's mean over positions at the lowest noise level, whatever the batch."""
    net, models = _judge()
    evaluation = _Evaluation(EVALUATION.samples, EVALUATION.clean, EVALUATION.data, {"judge": net})
    settings = {"features": "tap", "role": "judge", "tap": "down.1.0"}
    numbers = _metric(Frechet, models=models, batch=37, **settings).compute(evaluation)
    with torch.no_grad():
        features = [
            net(x, torch.full((len(x),), 5.0), taps=("down.1.0",)).features["down.1.0"].mean((2, 3))
            for x in (EVALUATION.samples, EVALUATION.clean)
        ]
    wanted = frechet_distance(*(Moments.of(feature) for feature in features))
    assert numbers["frechet_judge_down.1.0"] == pytest.approx(wanted, rel=1e-4)
    assert set(numbers) == {"frechet_judge_down.1.0", "frechet_data_judge_down.1.0"}
    protocol = _metric(Frechet, models=models, **settings).protocol()
    assert (protocol["role"], protocol["tap"], protocol["c_noise"]) == ("judge", "down.1.0", 5.0)


def test_frechet_gives_a_classifier_no_noise_level():
    """A role without parametrization is called as a classifier."""

    @frozen
    class _Out:
        features: dict

    class _Classifier(torch.nn.Module):
        def forward(self, x, c_noise, labels, *, taps, stop_at):
            assert c_noise is None
            assert labels is None
            assert stop_at in taps
            return _Out({"tokens": x.flatten(2)})

    models = {"judge": ModelInfo(kind="backbone", frozen=True, taps={"tokens": TapInfo(width=64)})}
    evaluation = _Evaluation(
        EVALUATION.samples, EVALUATION.clean, EVALUATION.data, {"judge": _Classifier()}
    )
    settings = {"features": "tap", "role": "judge", "tap": "tokens"}
    numbers = _metric(Frechet, models=models, **settings).compute(evaluation)
    pixels = _metric(Frechet).compute(EVALUATION)
    assert numbers["frechet_judge_tokens"] == pytest.approx(pixels["frechet"])


def test_pooled_features_average_positions():
    """Maps, tokens and vectors all become [B, D]."""
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    tokens = maps.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled_features(maps), pooled_features(tokens))
    assert torch.equal(pooled_features(maps[:, :, 0, 0]), maps[:, :, 0, 0])


class _Means(torch.nn.Module):
    """A judge for 16x16 alone: its tap is the 8x8 means of blocks, a token each."""

    def forward(self, x, c_noise, labels, *, taps, stop_at):
        assert x.shape[-2:] == (16, 16)
        assert float(x.abs().max()) <= 1
        blocks = torch.nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2)
        return BackboneOutput(x, {stop_at: blocks})


def test_frechet_resizes_images_for_a_judge_of_another_size():
    """8x8 images come as 16x16 inside the domain; the protocol tells the rule."""
    models = {"judge": ModelInfo(kind="backbone", frozen=True, taps={"blocks": TapInfo(width=1)})}
    settings = {"features": "tap", "role": "judge", "tap": "blocks", "resize": 16}
    sharp = EVALUATION.data.sign()
    evaluation = _Evaluation(sharp, EVALUATION.clean, sharp, {"judge": _Means()})
    numbers = _metric(Frechet, models=models, **settings).compute(evaluation)
    assert numbers["frechet_judge_blocks"] == numbers["frechet_data_judge_blocks"]
    protocol = _metric(Frechet, models=models, **settings).protocol()
    assert protocol["resize"] == "bicubic, antialias, 16 x 16, clipped to the domain"
    settings.pop("resize")
    assert _metric(Frechet, models=models, **settings).protocol()["resize"] == "none"


def test_frechet_resizes_by_the_rule_it_tells():
    """Bicubic with antialias, then clipped: the judge sees what PIL makes of the image."""
    seen = []
    models = {"judge": ModelInfo(kind="backbone", frozen=True, taps={"x": TapInfo(width=1)})}
    metric = _metric(Frechet, models=models, features="tap", role="judge", tap="x", resize=5)

    class _Eye(torch.nn.Module):
        def forward(self, x, c_noise, labels, *, taps, stop_at):
            seen.append(x)
            return BackboneOutput(x, {stop_at: x})

    x = _images(0.3, 3, 5)
    list(metric._features(_Eye(), x))
    for image, found in zip(x, torch.cat(seen), strict=True):
        wanted = Image.fromarray(image[0].numpy()).resize((5, 5), Image.Resampling.BICUBIC)
        wanted = torch.tensor(np.asarray(wanted)).clamp(-1, 1)
        torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)


def test_frechet_refuses_to_resize_points():
    """Only images have a size."""
    models = {"judge": ModelInfo(kind="backbone", frozen=True, taps={"x": TapInfo(width=1)})}
    with pytest.raises(RecipeError, match=r"the data have shape \[3\], only images") as caught:
        _metric(Frechet, POINTS, models=models, features="tap", role="judge", tap="x", resize=16)
    assert caught.value.faults[0].key == "evaluate.metrics[0].resize"


@pytest.mark.parametrize(
    ("settings", "key", "words", "fix"),
    [
        (
            {"role": "judges"},
            "role",
            "there is no role 'judges'; there are judge",
            'role = "judge"',
        ),
        ({}, "role", "there is no role None; there are judge", 'role = "judge"'),
        (
            {"role": "judge", "tap": "down.1"},
            "tap",
            r"there is no tap 'down\.1'; there are down\.0\.0, down\.1\.0, mid",
            'tap = "down.1.0"',
        ),
    ],
)
def test_frechet_refuses_unknown_roles_and_taps(settings, key, words, fix):
    """The nearest name is offered."""
    _, models = _judge()
    with pytest.raises(RecipeError, match=words) as caught:
        _metric(Frechet, models=models, features="tap", **settings)
    fault = caught.value.faults[0]
    assert fault.key == f"evaluate.metrics[0].{key}"
    assert fix in fault.fix


def _plane(noise=0.0, scale=1.0, count=2000, seed=0):
    """Points of the default plane, shrunk by `scale` and moved along the normal by noise."""
    settings = ObliquePlane.Settings(count=count, seed=seed)
    x = ObliquePlane(settings, Build()).batch(torch.arange(count)).x
    normal = torch.tensor([1.0, 1.0, -2.0]) / 6**0.5
    generator = torch.Generator().manual_seed(seed)
    return scale * x + noise * torch.randn(count, 1, generator=generator) * normal


@pytest.mark.parametrize("normal", [(), (1.0, 1.0, -2.0), (-3.0, -3.0, 6.0)])
def test_plane_distance_finds_noise_and_shrinkage(normal):
    """Mean |z| = std sqrt(2 / pi); half of the size inside; the plane fitted or given."""
    evaluation = _Evaluation(samples=_plane(0.1, 0.5), clean=_plane(), data=_plane(0.2, seed=1))
    numbers = _metric(PlaneDistance, POINTS, normal=normal).compute(evaluation)
    half = math.sqrt(2 / math.pi)
    assert numbers["plane_distance"] == pytest.approx(0.1 * half, rel=0.05)
    assert numbers["plane_distance_data"] == pytest.approx(0.2 * half, rel=0.05)
    assert numbers["plane_distance_clean"] < 1e-6
    assert numbers["plane_off_share"] == pytest.approx(math.erfc(1 / math.sqrt(2)), rel=0.1)
    assert numbers["plane_off_share_clean"] == 0
    assert numbers["plane_std_ratio"] == pytest.approx(0.5, rel=1e-5)
    json.dumps(_metric(PlaneDistance, POINTS, normal=normal).protocol(), allow_nan=False)


def test_plane_distance_counts_the_offset():
    """A plane away from 0, fitted and given."""
    evaluation = _Evaluation(samples=_plane() + 1, clean=_plane() + 1, data=_plane())
    normal = torch.tensor([1.0, 1.0, -2.0])
    moved = {"normal": (1.0, 0.0, 0.0), "offset": 2.0}
    fitted = _metric(PlaneDistance, POINTS).compute(evaluation)
    assert float(normal @ torch.ones(3)) == 0
    assert fitted["plane_distance_data"] < 1e-6
    numbers = _metric(PlaneDistance, POINTS, **moved).compute(evaluation)
    wanted = float((evaluation.samples[:, 0] - 2).abs().mean())
    assert numbers["plane_distance"] == pytest.approx(wanted)


@pytest.mark.parametrize("offset", [0.0, -0.7])
def test_fit_plane_recovers_any_plane(offset):
    """Normal (up to sign) and offset, with points in only D - 1 directions."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize(torch.tensor([0.2, -1.0, 0.4, 0.1]).double(), dim=0)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    x = x + (offset - x @ normal)[:, None] * normal
    found, distance = fit_plane(x)
    torch.testing.assert_close(found * torch.sign(found @ normal), normal)
    torch.testing.assert_close(distance * torch.sign(found @ normal), torch.tensor(offset).double())


@pytest.mark.parametrize(
    ("data", "settings", "words"),
    [
        (IMAGES, {}, r'"plane-distance" needs points, the data have shape \[1, 8, 8\]'),
        (POINTS, {"normal": (1.0, 0.0)}, "normal has 2 numbers, points have 3"),
        (POINTS, {"normal": (0.0, 0.0, 0.0)}, "normal: all numbers are 0"),
    ],
)
def test_plane_distance_refuses_what_has_no_plane(data, settings, words):
    """Each has its message."""
    with pytest.raises(RecipeError, match=words):
        _metric(PlaneDistance, data, **settings)
