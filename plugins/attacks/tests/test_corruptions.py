"""Common corruptions: formulas, severities, independence, and the accuracy under them."""

from __future__ import annotations

import colorsys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from advdiff_attacks import image_filters as filters
from advdiff_attacks.common_corruptions import CORRUPTIONS, corrupt_image
from advdiff_attacks.corruption_metric import CorruptionAccuracy
from advdiff_attacks.corruptions import CommonCorruption, damaged
from torch import Tensor

from advdiff_core import Build, DataError, DataInfo, ModelInfo, NumericsError, RecipeError
from advdiff_core.draws import keyed_generator
from advdiff_core.types import Domain

INFO = DataInfo(shape=(3, 32, 32), count=40, domain=Domain(-1.0, 1.0), classes=4)
GREY = DataInfo(shape=(1, 8, 8), count=4, domain=Domain(0.0, 1.0))
MODELS = {"student": ModelInfo(kind="backbone", frozen=False)}
PLAIN = ("gaussian-blur", "defocus-blur", "zoom-blur", "brightness", "contrast", "saturate",
         "pixelate", "jpeg")  # fmt: skip


def image(seed: int = 0, size: int = 32, channels: int = 3) -> Tensor:
    """A picture [C, H, W] of blocks and a fine grain, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(channels, 6, 6, generator=generator)
    blocks = torch.nn.functional.interpolate(base[None], (size, size), mode="nearest")[0]
    return 0.8 * blocks + 0.2 * torch.rand(channels, size, size, generator=generator)


def made(name: str, severity: int, x: Tensor, seed: int = 0) -> Tensor:
    """The image damaged."""
    return corrupt_image(x, name, severity, keyed_generator("test", seed))


def corruption(name: str, *, info: DataInfo = INFO, **keys: Any) -> CommonCorruption:
    """A corruption as a recipe builds it."""
    settings = CommonCorruption.settings_type(name)(**keys)
    return CommonCorruption(settings, Build(path="data.corrupt[0]", data=info))


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_every_kind_keeps_shape_and_range_and_grows_with_severity(name: str) -> None:
    """Severity 5 is farther from the image than severity 1, which is farther than nothing."""
    x = torch.stack([image(seed) for seed in range(6)])
    far = []
    for severity in (1, 5):
        y = torch.stack([made(name, severity, one, seed) for seed, one in enumerate(x)])
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert 0 <= float(y.min()) <= float(y.max()) <= 1
        far.append(float((y - x).square().mean().sqrt()))
    assert far[0] > 0
    # Elastic's first severity is an affine map alone; saturate goes down, then up.
    assert name in ("elastic", "saturate") or far[1] > 1.15 * far[0]


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_damage_depends_on_seed_and_identity_alone(name: str) -> None:
    """The same in any batch; another identity meets other numbers where there are any."""
    x = torch.stack([image(0)] * 3)
    whole = damaged(x, name, 3, ids=[7, 8, 7], seed=1)
    assert torch.equal(whole[0], whole[2])
    assert torch.equal(damaged(x[:1], name, 3, ids=[7], seed=1)[0], whole[0])
    assert torch.equal(whole[0], whole[1]) == (name in PLAIN)
    other = damaged(x[:1], name, 3, ids=[7], seed=2)[0]
    assert torch.equal(other, whole[0]) == (name in PLAIN)


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (12, 20)])
def test_other_sizes_and_grey_images_are_damaged_too(size: tuple[int, int]) -> None:
    """All kinds but those that need colour."""
    x = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    for name, kind in CORRUPTIONS.items():
        if not kind.channels or 1 in kind.channels:
            assert made(name, 3, x).shape == x.shape


def test_noise_has_the_published_moments() -> None:
    """Gaussian, shot and speckle noise on a flat grey; impulses by their count."""
    flat = torch.full((3, 200, 200), 0.5)
    std = {"gaussian-noise": 0.08, "shot-noise": (0.5 / 100) ** 0.5, "speckle-noise": 0.5 * 0.12}
    for name, wanted in std.items():
        found = made(name, 3, flat)
        assert float(found.std()) == pytest.approx(wanted, rel=0.02)
        assert float(found.mean()) == pytest.approx(0.5, abs=0.002)
    struck = made("impulse-noise", 3, flat)
    assert float((struck != 0.5).double().mean()) == pytest.approx(0.03, rel=0.05)
    assert float((struck == 0).double().mean()) == pytest.approx(0.015, rel=0.07)


def test_gaussian_blur_is_scipys() -> None:
    """With edges repeated, as scikit-image blurs."""
    x = image(3)
    for sigma in (0.4, 1.0, 2.3):
        expected = scipy.ndimage.gaussian_filter(
            x.double().numpy(), (0, sigma, sigma), mode="nearest"
        )
        found = filters.gaussian_blur(x.double(), sigma)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_contrast_and_brightness_are_their_formulas() -> None:
    """About the mean of each channel; the value of HSV alone."""
    x = image(1) * 0.6 + 0.1
    mean = x.mean((1, 2), keepdim=True)
    torch.testing.assert_close(made("contrast", 2, x), (x - mean) * 0.5 + mean)
    for name, level in (("brightness", 0.15), ("saturate", 1.5)):
        found = made(name, 3, x)
        for at in ((0, 0), (9, 17), (31, 30)):
            h, s, v = colorsys.rgb_to_hsv(*x[:, at[0], at[1]].tolist())
            s, v = (s, min(v + level, 1)) if name == "brightness" else (min(s * level, 1), v)
            expected = colorsys.hsv_to_rgb(h, s, v)
            assert found[:, at[0], at[1]].tolist() == pytest.approx(expected, abs=1e-5)


def test_saturate_turns_greys_red_and_black_stays() -> None:
    """As converting to HSV and back does, where the hue of a grey is 0."""
    grey = torch.full((3, 4, 4), 0.5)
    assert made("saturate", 5, grey)[:, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.4])
    assert torch.equal(made("saturate", 5, grey * 0), grey * 0)
    assert made("brightness", 1, grey * 0)[:, 0, 0].tolist() == pytest.approx([0.05] * 3)


def test_blurs_keep_a_flat_image_and_spread_a_point() -> None:
    """Kernels sum to one; a point stays where it is on average, but for the one-sided smear."""
    flat, point = torch.full((1, 33, 33), 0.3), torch.zeros(1, 33, 33)
    point[0, 20, 9] = 1.0
    for name in ("gaussian-blur", "defocus-blur", "motion-blur", "zoom-blur"):
        torch.testing.assert_close(made(name, 5, flat), flat)
        spread = made(name, 5, point)[0]
        assert float(spread.max()) < 0.9
        assert int((spread > 1e-3).sum()) > 3
    torch.testing.assert_close(filters.disk(1.5, 0.1).sum(), torch.tensor(1.0))


def test_warps_and_zooms_are_the_identity_where_nothing_moves() -> None:
    """An affine map of one, no shift, factor 1."""
    x = image(2)
    eye = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    torch.testing.assert_close(filters.warped(x, eye, torch.zeros(2, 32, 32)), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(filters.zoomed(x, 1.0), x, atol=1e-5, rtol=0)


def test_the_recipes_component_damages_a_share_in_the_datas_range() -> None:
    """Of images in [-1, 1]: exactly the share, the rest bit for bit."""
    x = 2 * torch.stack([image(seed) for seed in range(40)]) - 1
    indices = torch.arange(40)
    one = corruption("gaussian-noise", fraction=0.25, severity=5)
    hit = one.affected(indices)
    assert int(hit.sum()) == 10
    found = one.corrupt(x, indices)
    assert torch.equal(found[~hit], x[~hit])
    assert (found[hit] != x[hit]).flatten(1).any(1).all()
    assert float(found.abs().max()) <= 1
    unit = damaged((x[hit] + 1) / 2, "gaussian-noise", 5, ids=indices[hit].tolist(), seed=0)
    torch.testing.assert_close(found[hit], 2 * unit - 1)


@pytest.mark.parametrize(
    ("name", "info", "words"),
    [
        ("fog", DataInfo(shape=(2,), count=4), "needs images with a range of values"),
        ("saturate", GREY, "needs 3 channels"),
    ],
)
def test_data_that_cannot_be_damaged_so_are_refused(name: str, info: DataInfo, words: str) -> None:
    """In one line that names the key."""
    with pytest.raises(RecipeError, match=words) as caught:
        corruption(name, info=info)
    assert caught.value.faults[0].key == "data.corrupt[0].use"


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    """Before anything is built."""
    with pytest.raises(ValueError, match="no common corruption 'snow'; there are gaussian-noise"):
        CommonCorruption.settings_type("snow")
    assert len(CommonCorruption.variant_names()) == 15


class _Bright(torch.nn.Module):
    """Names the quarter of the range that the mean of an image lies in."""

    def forward(self, x, c_noise, labels):
        mean = (x.flatten(1).mean(1) + 1) / 2
        centres = (torch.arange(4) + 0.5) / 4
        return SimpleNamespace(output=-(mean[:, None] - centres).abs() / self.scale)

    scale = 1.0


def evaluation(x: Tensor, y: Tensor | None, net: torch.nn.Module) -> Any:
    """What a metric may read."""
    return SimpleNamespace(clean=x, labels=y, device=torch.device("cpu"), module=lambda role: net)


def metric(**keys: Any) -> CorruptionAccuracy:
    """The metric as a recipe builds it."""
    build = Build(path="evaluate.metrics[0]", data=INFO, models=MODELS)
    return CorruptionAccuracy(CorruptionAccuracy.Settings(**keys), build)


def flat_images(levels: Tensor) -> Tensor:
    """Flat images [N, 3, 32, 32] in [-1, 1] of these values of [0, 1]."""
    return (2 * levels - 1)[:, None, None, None].expand(-1, 3, 32, 32).clone()


def test_accuracy_is_counted_per_kind_and_severity() -> None:
    """Brightness moves images over a boundary that is known; contrast leaves flat ones alone."""
    levels = torch.tensor([0.05, 0.15, 0.21, 0.30, 0.47, 0.55, 0.68, 0.90])
    y = (levels * 4).long()
    found = metric(kinds=("brightness", "contrast"), severities=(1, 5), batch=3).compute(
        evaluation(flat_images(levels), y, _Bright())
    )
    bright = {s: ((levels + c).clamp_max(0.999) * 4).long() == y for s, c in ((1, 0.05), (5, 0.3))}
    share = {s: float(v.double().mean()) for s, v in bright.items()}
    assert found["train_uncorrupted_accuracy"] == 1.0
    assert found["train_corrupted_accuracy_contrast"] == 1.0
    assert found["train_corrupted_accuracy_brightness"] == pytest.approx((share[1] + share[5]) / 2)
    assert found["train_corrupted_accuracy_s5"] == pytest.approx((1 + share[5]) / 2)
    assert found["train_corrupted_worst"] == pytest.approx(
        float((bright[1] & bright[5]).double().mean())
    )
    assert 0 < share[5] < share[1] < 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kinds": ("snow",)}, ("metrics[0].kinds", "'snow'", "fog")),
        ({"severities": ()}, ("metrics[0].severities", "none", "[3]")),
        ({"role": "nobody"}, ("metrics[0].role", "no classifier")),
    ],
)
def test_settings_of_the_metric_that_mean_nothing_are_refused(
    keys: Any, words: tuple[str, ...]
) -> None:
    """In one line that names the key and the mend."""
    with pytest.raises(RecipeError) as caught:
        metric(**keys)
    fault = caught.value.faults[0]
    for word in words:
        assert word in f"{fault.key} {fault.message} {fault.fix}"


def test_data_without_labels_and_networks_without_logits_are_refused() -> None:
    """When the metric first meets them."""
    x = flat_images(torch.tensor([0.1, 0.6]))
    one = metric(kinds=("contrast",), severities=(1,))
    with pytest.raises(DataError, match="no labels"):
        one.compute(evaluation(x, None, _Bright()))
    broken = _Bright()
    broken.scale = 0.0
    y = torch.tensor([0, 2])
    with pytest.raises(NumericsError, match="not finite"):
        one.compute(evaluation(x, y, broken))
    nothing = torch.nn.Module()
    nothing.forward = lambda *_: SimpleNamespace(output=None)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="wanted one logit per class"):
        one.compute(evaluation(x, y, nothing))
