"""Norms, projections, random points and directions of steepest ascent."""

import pytest
import torch
from scipy.optimize import minimize
from torch.testing import assert_close

from advdiff_core.draws import Draws
from advdiff_core.math import norms

NORMS = ("linf", "l2", "l1")


def draws(size):
    """A keyed stream for `size` samples."""
    return Draws((0, "test"), start=0, size=size, total=size, device="cpu")


def test_norm_of_images_is_taken_over_all_pixels_of_each():
    """One number a sample, by the textbook formulas."""
    x = torch.tensor([[[3.0, -4.0]], [[0.0, 0.0]]])
    assert norms.norm(x, "linf").tolist() == [4, 0]
    assert norms.norm(x, "l2").tolist() == [5, 0]
    assert norms.norm(x, "l1").tolist() == [7, 0]


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_l2_norm_neither_underflows_nor_overflows(scale):
    """Squares of such numbers do not exist in float32."""
    x = torch.tensor([[3.0, 4.0]]) * scale
    assert_close(norms.norm(x, "l2"), torch.tensor([5.0]) * scale)


def test_norms_keep_low_precision_types():
    """What comes in as bfloat16 goes out as bfloat16."""
    x = torch.ones(2, 3, dtype=torch.bfloat16)
    for kind in NORMS:
        assert norms.norm(x, kind).dtype == torch.bfloat16
        assert norms.project(x, norm=kind, radius=0.5).dtype == torch.bfloat16
        assert norms.steepest_ascent(x, kind).dtype == torch.bfloat16


def test_project_onto_known_points():
    """Worked by hand."""
    x = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    assert_close(norms.project(x, norm="linf", radius=1.0), torch.tensor([[1.0, -1.0]]).double())
    assert_close(norms.project(x, norm="l2", radius=1.0), torch.tensor([[0.6, -0.8]]).double())
    assert_close(norms.project(x, norm="l1", radius=3.0), torch.tensor([[1.0, -2.0]]).double())
    assert_close(norms.project(x, norm="l1", radius=0.5), torch.tensor([[0.0, -0.5]]).double())


@pytest.mark.parametrize("kind", NORMS)
def test_project_takes_a_radius_per_sample(kind):
    """Each sample has its own ball."""
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)) * 10
    radius = torch.tensor([0.0, 0.5, 1e9])
    found = norms.project(x, norm=kind, radius=radius)
    assert (found[0] == 0).all()
    assert_close(norms.norm(found, kind)[1], radius[1])
    assert torch.equal(found[2], x[2])


@pytest.mark.parametrize("kind", NORMS)
def test_project_of_zero_is_zero_and_never_nan(kind):
    """Also onto a ball of radius zero."""
    for radius in (0.0, 1.0):
        assert (norms.project(torch.zeros(2, 3), norm=kind, radius=radius) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("width", [1, 3, 100, 3072])
def test_project_is_inside_without_tolerance_and_idempotent_to_the_bit(kind, width, dtype):
    """The norm as computed never exceeds the radius, so that projecting again does nothing."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(16, width, generator=generator, dtype=dtype) * 10
    for radius in (1e-3, 8 / 255, 0.5):
        once = norms.project(x, norm=kind, radius=radius)
        assert (norms.norm(once, kind) <= torch.tensor(radius, dtype=dtype)).all()
        assert torch.equal(norms.project(once, norm=kind, radius=radius), once)


@pytest.mark.parametrize("seed", range(3))
def test_project_onto_l1_is_the_optimum_scipy_finds(seed):
    """A general solver, on the variables' positive and negative parts, ends at the same point."""
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = norms.project(x, norm="l1", radius=1.0)[0]
    solution = minimize(
        lambda parts: ((parts[:5] - parts[5:] - x[0].numpy()) ** 2).sum(),
        x0=[0.1] * 10,
        bounds=[(0, None)] * 10,
        constraints={"type": "ineq", "fun": lambda parts: 1 - parts.sum()},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert_close(found, torch.from_numpy(solution.x[:5] - solution.x[5:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", NORMS)
def test_project_has_the_gradient_of_a_projection(kind):
    """Finite differences in float64, away from the kinks."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: norms.project(d, norm=kind, radius=0.7), (x,))


@pytest.mark.parametrize("kind", NORMS)
def test_uniform_in_ball_fills_the_ball_evenly(kind):
    """Norm^D of a uniform point is uniform on [0, 1]; its mean is 0."""
    width = 3
    points = norms.uniform_in_ball((20_000, width), norm=kind, radius=2.0, draws=draws(20_000))
    share = (norms.norm(points, kind) / 2) ** width
    quantiles = torch.quantile(share, torch.tensor([0.25, 0.5, 0.75]))
    assert_close(quantiles, torch.tensor([0.25, 0.5, 0.75]), atol=0.015, rtol=0)
    assert_close(points.mean(0), torch.zeros(width), atol=0.03, rtol=0)


@pytest.mark.parametrize("kind", NORMS)
def test_uniform_in_ball_lies_inside_per_sample_radii(kind):
    """With the shape asked for, for images too."""
    radius = torch.tensor([0.0, 0.1, 3.0])
    points = norms.uniform_in_ball((3, 2, 4, 4), norm=kind, radius=radius, draws=draws(3))
    assert points.shape == (3, 2, 4, 4)
    assert (norms.norm(points, kind) <= radius).all()


def test_uniform_in_l1_ball_is_even_over_the_faces_too():
    """The first coordinate of a uniform point of the 2-D ball has the triangular law."""
    points = norms.uniform_in_ball((20_000, 2), norm="l1", radius=1.0, draws=draws(20_000))
    # P(|x| <= c) = 1 - (1 - c)^2.
    share = (points[:, 0].abs() <= 0.5).float().mean().item()
    assert share == pytest.approx(0.75, abs=0.01)


def test_steepest_ascent_of_known_gradients():
    """Signs, direction and largest coordinate."""
    gradient = torch.tensor([[[3.0, -4.0]], [[0.0, 0.0]]])
    assert norms.steepest_ascent(gradient, "linf").tolist() == [[[1, -1]], [[0, 0]]]
    assert_close(norms.steepest_ascent(gradient, "l2")[0], torch.tensor([[0.6, -0.8]]))
    assert norms.steepest_ascent(gradient, "l1").tolist() == [[[0, -1]], [[0, 0]]]


def test_steepest_ascent_in_l2_survives_vanishing_gradients():
    """Where the square of the gradient underflows the direction is still known."""
    gradient = torch.tensor([[3.0, 4.0]]) * 1e-30
    assert_close(norms.steepest_ascent(gradient, "l2"), torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: norms.norm(x, "l3"),
        lambda x: norms.project(x, norm="l3", radius=1.0),
        lambda x: norms.steepest_ascent(x, "l3"),
        lambda x: norms.uniform_in_ball((1, 2), norm="l3", radius=1.0, draws=draws(1)),
    ],
)
def test_norms_name_an_unknown_norm(call):
    """The message lists what may be written."""
    with pytest.raises(ValueError, match="unknown norm 'l3'; wanted linf, l2 or l1"):
        call(torch.ones(1, 2))
