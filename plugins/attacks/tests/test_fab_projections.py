"""Projections onto a hyperplane inside a box: nearest, inside, and right where it cannot be met."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from advdiff_attacks.fab_projections import displacement
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from advdiff_core.math import norms
from advdiff_core.types import Domain

NORMS = ("linf", "l2", "l1")
UNIT = Domain(0.0, 1.0)
WIDE = Domain(-1.0, 3.0)


def _case(seed, size, *, zeros, walls, domain):
    """Points, normals and gaps of planes that meet the box, or not, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(4, size, generator=generator, dtype=torch.float64)
    if walls:
        x = torch.where(x < 0.3, 0.0, torch.where(x > 0.7, 1.0, x))
    w = torch.randn(4, size, generator=generator, dtype=torch.float64)
    if zeros:
        w[:, ::2] = 0
    gap = 0.3 * size**0.5 * torch.randn(4, generator=generator, dtype=torch.float64)
    return domain.low + domain.span * x, w, gap * domain.span


cases = {
    "seed": st.integers(0, 999),
    "size": st.integers(1, 12),
    "zeros": st.booleans(),
    "walls": st.booleans(),
    "domain": st.sampled_from((UNIT, WIDE)),
}


def _reach(x, w, domain):
    """Smallest and largest value of w . d over the box [N]."""
    low, high = w * (domain.low - x), w * (domain.high - x)
    return torch.minimum(low, high).sum(1), torch.maximum(low, high).sum(1)


@pytest.mark.parametrize("norm", NORMS)
@given(**cases)
def test_displacement_lands_on_the_plane_inside_the_box(norm, seed, size, zeros, walls, domain):
    """Where the plane meets the box it is met, and else the closest corner is reached."""
    x, w, gap = _case(seed, size, zeros=zeros, walls=walls, domain=domain)
    d = displacement(x, w, gap, norm=norm, domain=domain)
    least, most = _reach(x, w, domain)
    wanted = (-gap).clamp(least, most)
    torch.testing.assert_close((w * d).sum(1), wanted, rtol=1e-10, atol=1e-10)
    assert bool((x + d >= domain.low - 1e-12).all())
    assert bool((x + d <= domain.high + 1e-12).all())
    assert bool((d[w == 0] == 0).all()), "coordinates without a say stay"


def _program(x, w, gap, norm, domain):
    """The smallest norm by a linear program, or for L2 a quadratic one, of scipy."""
    size = len(x)
    low, high = domain.low - x, domain.high - x
    if norm == "l2":
        room = {"type": "eq", "fun": lambda d: (w * d).sum() + gap, "jac": lambda _: w}
        found = minimize(
            lambda d: (d**2).sum(), np.zeros(size), jac=lambda d: 2 * d, constraints=[room],
            bounds=list(zip(low, high, strict=True)), method="SLSQP", options={"ftol": 1e-14},
        )  # fmt: skip
        return found.fun**0.5 if found.success else None
    eye, bound = np.eye(size), np.ones((size, 1)) if norm == "linf" else np.eye(size)
    cost = np.r_[np.zeros(size), np.ones(bound.shape[1])]
    over = np.block([[eye, -bound], [-eye, -bound]])
    limits = [*zip(low, high, strict=True), *[(0, None)] * bound.shape[1]]
    equal = np.r_[w, np.zeros(bound.shape[1])][None]
    found = linprog(cost, over, np.zeros(2 * size), equal, [-gap], bounds=limits, method="highs")
    return found.fun if found.success else None


@pytest.mark.parametrize("norm", NORMS)
@given(**cases)
def test_displacement_is_as_short_as_a_mathematical_program_finds(
    norm, seed, size, zeros, walls, domain
):
    """No feasible displacement is shorter, by scipy's solvers."""
    x, w, gap = _case(seed, size, zeros=zeros, walls=walls, domain=domain)
    least, most = _reach(x, w, domain)
    feasible = (-gap > least + 1e-6) & (-gap < most - 1e-6)
    d = displacement(x, w, gap, norm=norm, domain=domain)
    for row in feasible.nonzero()[:1, 0].tolist():
        shortest = _program(x[row].numpy(), w[row].numpy(), float(gap[row]), norm, domain)
        if shortest is None:
            continue
        length = float(norms.norm(d[row : row + 1], norm))
        assert length == pytest.approx(shortest, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 999), size=st.integers(1, 40), power=st.sampled_from((0, -25, 20)))
def test_displacement_without_a_domain_is_the_dual_norm(norm, seed, size, power):
    """Without walls the length is |gap| over the dual norm, for normals of any size."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(2, 3, size, generator=generator).unbind()
    w = w * 10.0**power
    gap = torch.randn(3, generator=generator) * 10.0**power
    d = displacement(x, w, gap, norm=norm, domain=None)
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    torch.testing.assert_close(norms.norm(d, norm), gap.abs() / norms.norm(w, dual))
    wide = displacement(x, w, gap, norm=norm, domain=Domain(-1e6, 1e6))
    torch.testing.assert_close(wide, d, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_displacement_of_a_flat_or_met_plane_is_zero(norm):
    """A zero normal gives no direction, and a point on the plane stays."""
    x = torch.full((2, 5), 0.5)
    w = torch.stack([torch.zeros(5), torch.ones(5)])
    for domain in (UNIT, None):
        d = displacement(x, w, torch.tensor([1.0, 0.0]), norm=norm, domain=domain)
        assert torch.equal(d, torch.zeros(2, 5))


def test_displacement_in_linf_fills_to_one_level():
    """Rooms .1, .4, .5 and weights 1, 2, 3: a need of 1.6 is level .3 beyond the first wall."""
    x = torch.tensor([[0.9, 0.6, 0.5]], dtype=torch.float64)
    w = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    d = displacement(x, w, torch.tensor([-1.6], dtype=torch.float64), norm="linf", domain=UNIT)
    wanted = torch.tensor([[0.1, 0.3, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(d, wanted)
