"""Synthetic points: geometry in closed form, determinism, labels, messages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core.datasets.points import GaussianMixture, ObliquePlane, TwoMoons, plane_basis
from advdiff_core.interfaces.component import Build

KINDS = {"oblique-plane": ObliquePlane, "gaussian-mixture": GaussianMixture, "two-moons": TwoMoons}
kinds = st.sampled_from(sorted(KINDS))


def _points(kind, run_seed=0, **settings):
    component = KINDS[kind]
    return component(component.Settings(**settings), Build(path="data", seed=run_seed))


def _all(data):
    return data.batch(torch.arange(data.info.count))


@given(kinds, st.integers(1, 3000), st.integers(0, 3), st.data())
def test_points_depend_on_seed_and_index_alone(kind, count, seed, draw):
    """Another count, order, batch or run seed gives each point what it was."""
    few = _points(kind, count=count, seed=seed)
    many = _points(kind, run_seed=5, count=3000, seed=seed)
    indices = torch.tensor(draw.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=9)))
    (x, y), (wanted_x, wanted_y) = few.batch(indices), many.batch(indices)
    assert torch.equal(x, wanted_x)
    assert y is wanted_y is None or torch.equal(y, wanted_y)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_have_the_declared_shape_and_types(kind):
    """float32 points, int64 labels below `classes`, no domain."""
    data = _points(kind, count=50)
    x, y = _all(data)
    assert x.shape == (50, *data.info.shape)
    assert x.dtype == torch.float32
    assert data.info.domain is None
    if data.info.classes:
        assert y.dtype == torch.int64
        assert set(y.tolist()) <= set(range(data.info.classes))
    else:
        assert y is None


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_give_other_points_and_fingerprints(kind):
    """Two seeds differ in points and fingerprint; the same seed does not."""
    a, b, c = (_points(kind, count=50, seed=seed) for seed in (0, 1, 0))
    assert not torch.equal(_all(a).x, _all(b).x)
    assert a.fingerprint() != b.fingerprint()
    assert a.fingerprint() == c.fingerprint()


def test_default_plane_is_z_equals_half_of_x_plus_y():
    """Points fill the square [-1, 1]^2 and lie on z = (x + y) / 2."""
    x = _all(_points("oblique-plane")).x.double()
    torch.testing.assert_close(x[:, 2], (x[:, 0] + x[:, 1]) / 2, rtol=0, atol=1e-7)
    assert x[:, :2].abs().max() <= 1
    for axis in (0, 1):
        assert abs(float(x[:, axis].std()) - 1 / math.sqrt(3)) < 0.01


@given(
    st.lists(st.floats(-3, 3), min_size=3, max_size=3).filter(
        lambda n: sum(v * v for v in n) > 0.01
    ),
    st.floats(-2, 2),
    st.sampled_from(["square", "normal"]),
)
def test_isometric_plane_holds_for_any_normal(normal, offset, coordinates):
    """n.x = offset, and lengths in the plane are those of the coordinates."""
    data = _points(
        "oblique-plane", count=2000, normal=tuple(normal), offset=offset, embedding="isometric",
        coordinates=coordinates, extent=2.0,
    )  # fmt: skip
    x = _all(data).x.double()
    unit = torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    torch.testing.assert_close(x @ unit, torch.full((2000,), offset).double(), rtol=0, atol=1e-5)
    flat = (x - offset * unit) @ plane_basis(unit).T
    variance = 4.0 / 3 if coordinates == "square" else 4.0
    torch.testing.assert_close(
        flat.var(dim=0), torch.full((2,), variance).double(), rtol=0.15, atol=0
    )


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=6).filter(
        lambda n: sum(v * v for v in n) > 1e-3
    )
)
def test_plane_basis_is_orthonormal_and_inside(normal):
    """Rows are unit vectors, orthogonal to each other and to the normal."""
    unit = torch.nn.functional.normalize(torch.tensor(normal, dtype=torch.float64), dim=0)
    basis = plane_basis(unit)
    torch.testing.assert_close(
        basis @ basis.T, torch.eye(len(unit) - 1).double(), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        basis @ unit, torch.zeros(len(unit) - 1).double(), rtol=0, atol=1e-12
    )


def test_gaussian_mixture_modes_lie_on_the_circle():
    """Points of mode k scatter by std around radius (cos, sin)(2 pi k / modes); modes are alike."""
    data = _points("gaussian-mixture", modes=5, radius=2.0, std=0.1, dims=3)
    x, y = _all(data)
    assert data.info.classes == 5
    for k in range(5):
        mode = x[y == k].double()
        angle = 2 * math.pi * k / 5
        centre = torch.tensor([2 * math.cos(angle), 2 * math.sin(angle), 0.0]).double()
        torch.testing.assert_close(mode.mean(dim=0), centre, rtol=0, atol=0.01)
        torch.testing.assert_close(
            mode.std(dim=0), torch.full((3,), 0.1).double(), rtol=0.05, atol=0
        )
        assert abs(len(mode) / len(x) - 0.2) < 0.02


def test_two_moons_without_noise_are_half_circles():
    """Each moon has radius 1 around its centre and lies on its side; the mean is 0."""
    x, y = _all(_points("two-moons", std=0.0))
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]])
    arm = (x - centres[y]).double()
    torch.testing.assert_close(arm.norm(dim=1), torch.ones(len(x)).double(), rtol=0, atol=1e-6)
    assert bool(((arm[:, 1] >= -1e-6) == (y == 0)).all())
    torch.testing.assert_close(x.double().mean(dim=0), torch.zeros(2).double(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"normal": (1.0, 2.0)}, "normal: found 2 numbers, wanted 3"),
        ({"normal": (0.0, 0.0, 0.0)}, "normal: all numbers are 0"),
        (
            {"normal": (1.0, 0.0, 0.0)},
            "normal: a vertical plane has no z of x and y; write embedding",
        ),
    ],
)
def test_oblique_plane_refuses_normals_that_are_none(settings, words):
    """Each has its message; a vertical plane works with the isometric embedding."""
    with pytest.raises(ValueError, match=words):
        ObliquePlane.Settings(**settings)
    ObliquePlane.Settings(normal=(1.0, 0.0, 0.0), embedding="isometric")
