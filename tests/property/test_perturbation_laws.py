"""Laws that hold for a perturbed view whatever its perturbation proposes."""

from __future__ import annotations

from typing import Any

import torch
from advdiff_toys.networks import ToyNet
from advdiff_toys.perturbations import ToyFree, ToyShift
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Budget, DataInfo, Domain, NoiseSchedule, View
from advdiff_core.math.norms import norm as norm_of
from advdiff_core.schedules import VE, Flow, VPCosine, VPLinear
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.testing.steps import Model, Moved, Stage, build_stage

DATA = DataInfo(shape=(1, 2, 2), count=64, domain=Domain(0.0, 1.0))
BASES = st.sampled_from(["clean", "image"])
NORMS = st.sampled_from(["linf", "l2", "l1"])
RADII = st.one_of(st.just(0.0), st.floats(1e-4, 10.0))
SCHEDULES = st.sampled_from([VPLinear, VPCosine, VE, Flow])


def images(size: int = 6) -> Tensor:
    """Images [size, 1, 2, 2] in [0, 1], float64."""
    generator = torch.Generator().manual_seed(5)
    return torch.rand(size, 1, 2, 2, generator=generator, dtype=torch.float64)


def stage(base: str, component: Any, keys: Any, schedule: type[NoiseSchedule] = VPLinear) -> Stage:
    """One network, one perturbed view."""
    made = schedule(schedule.Settings(), build_stage(data=DATA, models={}).build)
    views = {"adv": Moved(base, component, keys)}
    return build_stage(data=DATA, models={"student": Model(ToyNet)}, views=views, schedule=made)


def views_of(made: Stage, x0: Tensor, **place: int) -> tuple[Any, Any]:
    """The base view and the perturbed one."""
    base = made.scene.views["adv"].base
    assert base is not None
    needs = (View(base), View("adv"))
    phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
    step = made.step(Plan([phase], made.scene), x0, **place)
    return step.get(needs[0]), step.get(needs[1])


@given(base=BASES, norm=NORMS, radius=RADII, unit=st.sampled_from(["image", "pixel"]))
def test_a_perturbation_never_leaves_its_budget_or_the_domain(
    base: str, norm: Any, radius: float, unit: Any
) -> None:
    """However far it proposes to go."""
    keys = ToyShift.Settings(norm=norm, radius=radius, unit=unit)
    clean, adv = views_of(stage(base, ToyShift, keys), images())
    size = norm_of(adv.x_t - clean.x_t, norm)
    assert (size <= radius * (1 + 1e-6) + 1e-9).all()
    assert (norm_of(adv.delta, norm) <= radius * (1 + 1e-6)).all()
    if base == "image":
        assert adv.x_t.min() >= 0
        assert adv.x_t.max() <= 1
    if radius == 0:
        assert torch.equal(adv.x_t, clean.x_t)


def test_a_radius_of_zero_keeps_even_what_lies_outside_the_domain() -> None:
    """Damaged samples may; an unperturbed view does not mend them."""
    made = stage("image", ToyShift, ToyShift.Settings(radius=0.0))
    clean, adv = views_of(made, 3 * images() - 1)
    assert clean.x_t.min() < 0
    assert torch.equal(adv.x_t, clean.x_t)


@given(norm=NORMS, size=st.floats(0.1, 4.0))
def test_a_free_delta_keeps_its_gradient_beyond_the_boundary(norm: Any, size: float) -> None:
    """The projection is straight through: a leaf on the sphere is not robbed of its slope."""
    made = stage("clean", ToyFree, ToyFree.Settings(norm=norm, radius=1.0))
    clean, _ = views_of(made, images())
    perturbation = made.scene.views["adv"].perturbation
    assert perturbation is not None
    leaf = torch.full_like(clean.x_t, size).requires_grad_()
    budget = Budget(norm, torch.ones(6, dtype=torch.float64))
    moved = perturbation.apply(clean, leaf, budget, None)
    assert (norm_of((moved.x_t - clean.x_t).detach(), norm) <= 1 + 1e-9).all()
    (gradient,) = torch.autograd.grad(moved.x_t.sum(), leaf)
    assert bool((gradient == 1).all())


@given(norm=NORMS, radius=RADII, unit=st.sampled_from(["image", "noise"]), schedule=SCHEDULES)
def test_a_moved_target_explains_the_moved_input(
    norm: Any, radius: float, unit: Any, schedule: type[NoiseSchedule]
) -> None:
    """`x_t = alpha x0 + sigma eps` holds on the moved view with the same x0."""
    keys = ToyShift.Settings(norm=norm, radius=radius, unit=unit)
    clean, adv = views_of(stage("clean", ToyShift, keys, schedule), images())
    whole = adv.alpha * adv.x0 + adv.sigma * adv.eps
    torch.testing.assert_close(whole, adv.x_t, rtol=1e-10, atol=1e-10)
    assert torch.equal(adv.x0, clean.x0)
    if radius == 0:
        assert torch.equal(adv.eps, clean.eps)
        assert torch.equal(adv.x_t, clean.x_t)


@given(norm=NORMS, radius=RADII, unit=st.sampled_from(["image", "noise"]))
def test_a_fixed_target_is_left_alone(norm: Any, radius: float, unit: Any) -> None:
    """The drawn noise stays, bit for bit."""
    keys = ToyShift.Settings(norm=norm, radius=radius, unit=unit, follows=False)
    clean, adv = views_of(stage("clean", ToyShift, keys), images())
    assert torch.equal(adv.eps, clean.eps)


@given(start=st.integers(0, 40), size=st.integers(1, 6), radius=st.floats(0.01, 2.0))
def test_a_sample_is_moved_the_same_way_on_any_rank(start: int, size: int, radius: float) -> None:
    """Whatever rows of the global batch a process holds."""
    made = stage("clean", ToyShift, ToyShift.Settings(radius=radius))
    x0 = images(46)
    _, whole = views_of(made, x0)
    _, part = views_of(made, x0[start : start + size], start=start, total=46)
    assert torch.equal(part.delta, whole.delta[start : start + size])
    assert torch.equal(part.x_t, whole.x_t[start : start + size])


@given(base=BASES, norm=NORMS, radius=RADII)
def test_a_free_perturbation_begins_at_zero_and_has_a_gradient(
    base: str, norm: Any, radius: float
) -> None:
    """Its leaf keeps the whole gradient, on the boundary too; at radius 0 there is none."""
    made = stage(base, ToyFree, ToyFree.Settings(norm=norm, radius=radius))
    clean, adv = views_of(made, images())
    torch.testing.assert_close(adv.x_t, clean.x_t, rtol=0, atol=0)
    assert adv.x_t.requires_grad
    delta = adv.delta
    assert delta.requires_grad
    (gradient,) = torch.autograd.grad(adv.x_t.sum(), delta, allow_unused=True)
    assert radius == 0 or bool((gradient == 1).all())
