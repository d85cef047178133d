"""What the Fourier ball is, and what a step in it does."""

from __future__ import annotations

import pytest
import torch
from advdiff_spectral import fourier
from advdiff_spectral.perturbations import SpectralFGSM
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, DataInfo, RecipeError
from advdiff_core.interfaces.component import ViewInfo
from advdiff_core.math import norms

BANDS = st.tuples(st.floats(0.0, 0.7), st.floats(0.7, 1.5))
SIZES = st.sampled_from([(4, 4), (5, 8), (7, 3)])


def images(seed: int, size: tuple[int, int], count: int = 3) -> Tensor:
    """Gaussian images of two channels, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, 2, *size), generator=generator, dtype=torch.float64)


def bound(value: float, count: int = 3) -> Tensor:
    """One bound for each sample."""
    return torch.full((count, 1, 1, 1), value, dtype=torch.float64)


@given(seed=st.integers(0, 99), size=SIZES, ends=BANDS, amplitude=st.floats(0.0, 3.0))
def test_projection_is_the_nearest_point_of_the_ball(seed, size, ends, amplitude) -> None:
    """It is inside, leaves what is inside, and no other point of the ball is nearer."""
    inside = fourier.band(size, *ends)
    x, other = images(seed, size), images(seed + 1000, size)
    found = fourier.project(x, inside, bound(amplitude))
    assert (fourier.norm(found) <= amplitude + 1e-9).all()
    torch.testing.assert_close(fourier.project(found, inside, bound(amplitude)), found)
    rival = fourier.project(other, inside, bound(amplitude))
    # The variational inequality of a projection onto a convex set.
    angle = ((x - found) * (rival - found)).flatten(1).sum(1)
    assert (angle <= 1e-9).all()


@given(seed=st.integers(0, 99), size=SIZES, ends=BANDS)
def test_ascent_attains_the_dual_norm(seed, size, ends) -> None:
    """It is in the ball, and a linear function gains the sum of amplitudes in the band."""
    inside, gradient = fourier.band(size, *ends), images(seed, size)
    step = fourier.ascent(gradient, inside)
    assert (fourier.norm(step) <= 1 + 1e-9).all()
    dual = (torch.fft.fft2(gradient, norm="ortho").abs() * inside).flatten(1).sum(1)
    torch.testing.assert_close((gradient * step).flatten(1).sum(1), dual)


@given(scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_the_size_of_the_gradient_does_not_matter(scale: float) -> None:
    """Neither do tiny gradients vanish, nor is a zero gradient divided by."""
    inside, gradient = fourier.band((8, 8), 0.0, 1.5), images(0, (8, 8))
    wanted = fourier.ascent(gradient, inside)
    torch.testing.assert_close(fourier.ascent(scale * gradient, inside), wanted)
    assert fourier.ascent(torch.zeros_like(gradient), inside).abs().max() == 0


def test_bands_are_rings() -> None:
    """The mean alone, everything but it, and a ring between."""
    assert fourier.band((8, 8), 0.0, 0.0).nonzero().tolist() == [[0, 0]]
    assert int(fourier.band((8, 8), 0.25, 1.5).sum()) == 63
    assert int(fourier.band((8, 8), 0.0, 1.5).sum()) == 64
    ring = fourier.band((8, 8), 0.25, 0.25)
    assert ring.nonzero().tolist() == [[0, 1], [0, 7], [1, 0], [7, 0]]


def test_the_declared_ball_is_the_smallest_around_the_spectral_one() -> None:
    """With every amplitude at its bound the L2 norm is the radius (Parseval)."""
    made = SpectralFGSM(SpectralFGSM.Settings(strength=0.5, low=0.5), Build(path="v.perturb"))
    inside = fourier.band((8, 8), 0.5, 1.5)
    full = 0.5 * fourier.ascent(images(3, (8, 8)), inside)
    view = type("View", (), {"x_t": full})
    radius = made.budget(view, None).radius
    torch.testing.assert_close(norms.norm(full, "l2"), torch.full((3,), radius).double())


def test_a_band_that_ends_before_it_begins_is_refused() -> None:
    """The message names the key."""
    with pytest.raises(ValueError, match=r"high: 0.2 must be at least low, 0.5"):
        SpectralFGSM.Settings(low=0.5, high=0.2)


@pytest.mark.parametrize(
    ("data", "root", "message"),
    [
        (DataInfo(shape=(2,), count=9), "clean", "points, which have no frequencies"),
        (DataInfo(shape=(1, 4, 4), count=9), "clean", r"no frequency of a 4x4 image lies in"),
        (DataInfo(shape=(1, 8, 8), count=9), "image", "'base' is a view of images"),
    ],
)
def test_what_has_no_such_frequencies_is_refused(data: DataInfo, root: str, message: str) -> None:
    """Points, images too small for the band, and views without noise."""
    build = Build(
        path="views.adv.perturb", data=data, views={"base": ViewInfo(base=None, root=root)}
    )
    with pytest.raises(RecipeError, match=message):
        SpectralFGSM(SpectralFGSM.Settings(low=0.72, high=0.78), build).needs("base")
