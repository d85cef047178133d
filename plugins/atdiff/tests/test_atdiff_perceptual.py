"""LPIPS with random weights: against the package of its authors, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from advdiff_atdiff import perceptual
from advdiff_atdiff.distances import DistanceKeys
from advdiff_atdiff.perceptual import Perceptual, Vgg
from torch import Tensor, nn

from advdiff_core import Build, DataInfo, Domain, RecipeError

GREY = DataInfo(shape=(1, 8, 8), count=4, domain=Domain(0.0, 1.0))


def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random ones, under the names of torchvision and lpips; heads are positive, as real ones."""
    rng = torch.Generator().manual_seed(0)
    net = Vgg()
    trunk = {
        f"features.{key}": 0.05 * torch.randn(t.shape, generator=rng)
        for key, t in net.features.state_dict().items()
    }
    heads = {
        f"lin{n}.model.1.weight": torch.rand(1, width, 1, 1, generator=rng)
        for n, width in enumerate(perceptual.TAPS.values())
    }
    return trunk, heads


@pytest.fixture
def distance(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LPIPS of small grey pictures, as the settings build it; 32 pixels keep the test short."""
    monkeypatch.setattr(perceptual, "find_weights", lambda build: weights())
    monkeypatch.setattr(perceptual, "SIZE", 32)
    return DistanceKeys(distance="lpips").build(Build(path="terms.c", data=GREY))


def test_distance_is_that_of_the_authors_package() -> None:
    """The same weights in the package `lpips` give the same numbers."""
    pytest.importorskip("lpips")
    import lpips

    trunk, heads = weights()
    net = Vgg()
    net.read(trunk, heads)
    theirs = lpips.LPIPS.__new__(lpips.LPIPS)
    nn.Module.__init__(theirs)
    theirs.version, theirs.lpips, theirs.spatial, theirs.L = "0.1", True, False, 5
    theirs.scaling_layer = lpips.ScalingLayer()
    features = nn.Sequential(*net.features)
    vgg = SimpleNamespace(features=features)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips.pretrained_networks.tv, "vgg16", lambda pretrained: vgg)
        theirs.net = lpips.pretrained_networks.vgg16(pretrained=False)
    theirs.lins = list(net.heads)
    rng = torch.Generator().manual_seed(1)
    a, b = (2 * torch.rand(2, 3, 64, 64, generator=rng) - 1 for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(net(a, b), theirs(a, b).flatten(), rtol=1e-5, atol=1e-7)


def test_distance_is_zero_for_equal_pictures_and_grows(distance: Perceptual) -> None:
    """One number per sample, in the dtype of the samples, symmetric."""
    rng = torch.Generator().manual_seed(1)
    a = torch.rand(3, 1, 8, 8, generator=rng, dtype=torch.float64)
    noise = torch.rand(3, 1, 8, 8, generator=rng, dtype=torch.float64)
    assert distance(a, a).tolist() == [0.0, 0.0, 0.0]
    near, far = distance(a, a + 0.05 * noise), distance(a, a + 0.5 * noise)
    assert near.dtype == torch.float64
    assert near.shape == (3,)
    assert bool(((near > 0) & (far > near)).all())
    torch.testing.assert_close(distance(a + noise, a), distance(a, a + noise))


def test_gradient_is_finite_on_pictures_without_contrast(distance: Perceptual) -> None:
    """Dead features divide by nothing."""
    a = torch.zeros(2, 1, 8, 8, requires_grad=True)
    distance(a, torch.ones(2, 1, 8, 8)).sum().backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())
    assert not any(p.requires_grad for p in distance._network.parameters())


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (DataInfo(shape=(2,), count=4), r"compares grey or colour images, found \[2\]"),
        (DataInfo(shape=(4, 8, 8), count=4), r"compares grey or colour images, found \[4, 8, 8\]"),
        (DataInfo(shape=(3, 8, 8), count=4), "lpips needs to know the range of the data"),
    ],
)
def test_data_that_are_no_pictures_are_refused(data: DataInfo, wanted: str) -> None:
    """Points, latents, and pictures of an unknown range."""
    with pytest.raises(RecipeError, match=wanted):
        Perceptual(Build(path="terms.c", data=data))


def test_missing_weights_are_named_with_what_fetches_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """First the package, then the file, a line each; nothing is downloaded."""
    build = Build(path="terms.c", data=GREY)
    here = SimpleNamespace(origin=str(tmp_path / "lpips" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'pip install "advdiff-atdiff\[lpips\]"') as caught:
        Perceptual(build)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: here)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(RecipeError, match=r"no file .*vgg16-397923af.pth - fetch it by python"):
        Perceptual(build)
    trunk, heads = weights()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "lpips" / "weights" / "v0.1").mkdir(parents=True)
    torch.save(trunk, tmp_path / "checkpoints" / perceptual.FILE)
    torch.save(heads, tmp_path / "lpips" / "weights" / "v0.1" / "vgg.pth")
    found = Perceptual(build)
    assert torch.equal(found._network.features[0].weight, trunk["features.0.weight"])
