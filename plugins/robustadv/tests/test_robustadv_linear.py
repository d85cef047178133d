"""Linearized images: exact projections onto a subspace that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advdiff_robustadv import datasets_linear
from advdiff_robustadv.datasets_linear import LinearizedImages, principal_directions
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Batch, Build, DataInfo, Dataset, Domain, RecipeError
from advdiff_core.engine.parts import assemble_data
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.settings import Spec


class Pictures(Dataset):
    """Random images [N, 1, 3, 4] in [0, 1], bright at the left."""

    def __init__(self, count: int = 40, seed: int = 0) -> None:
        super().__init__(None, Build())
        generator = torch.Generator().manual_seed(seed)
        ramp = torch.linspace(1.0, 0.1, 4)
        self.x = torch.rand(count, 1, 3, 4, generator=generator) * ramp

    @property
    def info(self) -> DataInfo:
        """Description."""
        return DataInfo(shape=(1, 3, 4), count=len(self.x), domain=Domain(0.0, 1.0), classes=2)

    def batch(self, indices: Tensor) -> Batch:
        """Images and the parity of their index."""
        return Batch(self.x[indices], indices % 2)

    def fingerprint(self) -> str:
        """A name."""
        return f"pictures {len(self.x)}"


def linear(data: Dataset | None = None, **keys: Any) -> LinearizedImages:
    """The projected pictures."""
    spec = Spec(kind="dataset", use="pictures", settings=None, component=Pictures)
    build = Build(path="data", make=lambda spec: data or Pictures())
    return LinearizedImages(LinearizedImages.Settings(images=spec, **keys), build)


def every(data: Dataset) -> Tensor:
    """All samples, flattened, float64."""
    return data.batch(torch.arange(data.info.count)).x.flatten(1).double()


@pytest.mark.parametrize("fit", ["shrink", "widen"])
@pytest.mark.parametrize("components", [1, 5, 12])
def test_samples_lie_in_the_subspace_and_in_the_domain(fit: str, components: int) -> None:
    """Nearest points are the samples themselves; labels and shape are the images'."""
    data = linear(components=components, fit=fit)
    x, info = every(data), data.info
    assert info.subspace is not None
    assert info.domain is not None
    assert info.subspace.basis.shape == (components, 12)
    torch.testing.assert_close(info.subspace.nearest(x), x, atol=1e-6, rtol=0)
    assert float(x.min()) >= info.domain.low - 1e-6
    assert float(x.max()) <= info.domain.high + 1e-6
    assert data.batch(torch.tensor([3, 4])).y.tolist() == [1, 0]  # type: ignore[union-attr]
    assert int(torch.linalg.matrix_rank(x - x.mean(0), atol=1e-4)) == components


def test_projection_is_the_truncated_svd_of_numpy() -> None:
    """Up to the map into the domain: widening maps nothing, and the middle stays."""
    images = Pictures()
    flat = images.x.flatten(1).double().numpy()
    u, s, v = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    wanted = flat.mean(0) + (u[:, :3] * s[:3]) @ v[:3]
    wide = linear(components=3, fit="widen")
    np.testing.assert_allclose(every(wide).numpy(), wanted, atol=1e-6)
    assert wide.info.subspace is not None
    assert wide.info.subspace.explained == pytest.approx((s[:3] ** 2).sum() / (s**2).sum())


def test_shrinking_scales_all_samples_about_the_middle_by_one_factor() -> None:
    """The largest deviation just reaches the end of the domain; without any, nothing moves."""
    bright = Pictures()
    bright.x[0] = torch.tensor([0.0, 1.0]).repeat(6).view(1, 3, 4)
    wide, fitted = linear(bright, components=2, fit="widen"), linear(bright, components=2)
    assert wide.info.domain is not None
    reach = wide.info.domain.span / 2
    assert reach > 0.5, "the pictures do leave the domain"
    torch.testing.assert_close(
        every(fitted) - 0.5, (every(wide) - 0.5) * 0.5 / reach, atol=1e-6, rtol=0
    )
    assert float((every(fitted) - 0.5).abs().max()) == pytest.approx(0.5, abs=1e-6)
    calm = Pictures()
    calm.x = 0.25 + calm.x / 2
    torch.testing.assert_close(every(linear(calm, components=12)), every(calm), atol=1e-6, rtol=0)


@given(count=st.integers(2, 30), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_principal_directions_are_orthonormal_on_either_side(
    count: int, width: int, seed: int
) -> None:
    """Fewer samples than dimensions or more: variances and the projection agree with numpy."""
    x = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()
    kept = min(count - 1, width, 3)
    mean, basis, variances = principal_directions(x, kept)
    torch.testing.assert_close(basis @ basis.T, torch.eye(kept).double(), atol=1e-9, rtol=0)
    _, s, v = np.linalg.svd((x - mean).numpy(), full_matrices=False)
    np.testing.assert_allclose(variances[:kept], s[:kept] ** 2 / (count - 1), rtol=1e-8)
    np.testing.assert_allclose((basis.T @ basis).numpy(), v[:kept].T @ v[:kept], atol=1e-6)


def test_fingerprint_follows_images_and_settings() -> None:
    """Other images or another number of components give another one."""
    prints = {
        linear(components=3).fingerprint(),
        linear(components=4).fingerprint(),
        linear(components=3, fit="widen").fingerprint(),
        linear(Pictures(41), components=3).fingerprint(),
    }
    assert len(prints) == 4
    assert linear(components=3).fingerprint() in prints


def test_more_dimensions_than_the_samples_vary_in_are_refused() -> None:
    """R10 names what there is; so for twelve pixels and for five pictures."""
    with pytest.raises(RecipeError, match="13 dimensions are wanted, the samples vary in 12") as c:
        linear(components=13)
    assert (c.value.faults[0].key, c.value.faults[0].fix) == (
        "data.components", "write components = 12",
    )  # fmt: skip
    with pytest.raises(RecipeError, match="5 dimensions are wanted, the samples vary in 4"):
        linear(Pictures(5), components=5)


def test_sets_that_do_not_fit_into_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """R10 before anything is read, with what to do."""
    monkeypatch.setattr(datasets_linear, "MAX_BYTES", 1000)
    with pytest.raises(RecipeError, match=r"40 samples of \[1, 3, 4\] need 1,920 bytes") as caught:
        linear(components=2)
    assert '"subset"' in caught.value.faults[0].fix


def test_real_photos_are_projected_as_numpy_does(real_data: Path, tmp_path: Path) -> None:
    """CIFAR-10: 40 dimensions hold most of the variance, and the samples are numpy's."""
    photos = np.load(real_data / "data" / "cifar10_mini.npz")["x_train"][:300]
    channels = photos.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "photos.npz", x=channels)
    told = {"use": "tensor-file", "path": str(tmp_path / "photos.npz"), "images": "x"}
    recipe = recipe_from_dict({
        "data": {"use": "linearized-images", "images": told, "components": 40, "fit": "widen"},
        "models": {"student": {"use": "unet"}},
    })  # fmt: skip
    source = assemble_data(recipe).source
    known = source.info.subspace
    assert known is not None
    assert 0.7 < known.explained < 0.95
    flat = channels.reshape(300, -1) / 127.5 - 1.0
    u, s, v = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    wanted = flat.mean(0) + (u[:, :40] * s[:40]) @ v[:40]
    np.testing.assert_allclose(every(source.dataset).numpy(), wanted, atol=2e-6)
