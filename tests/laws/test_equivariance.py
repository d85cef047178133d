"""Equivariance as a property: closed forms, worst witnesses, shrunk counterexamples."""

from __future__ import annotations

import pytest
import torch
from advdiff_toys.networks import ToyNet
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from advdiff_core import Budget, Build, DataInfo, Domain, Prediction, expand
from advdiff_core.backbones.mlp import MLP
from advdiff_core.math import norms
from advdiff_core.schedules import EDM, Flow, VPLinear
from advdiff_core.testing import (
    LawBroken,
    assert_equivariant,
    assert_group_equivariant,
    assert_invariant,
    budgets,
    deltas,
    denoiser_of,
    equivariance_error,
    group_error,
    images,
    noise_levels,
    times,
)

SCHEDULES = [cls(cls.Settings(), Build()) for cls in (VPLinear, Flow, EDM)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
X0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)


def denoiser(schedule, eps_hat):
    """A denoiser by its predicted noise, a function of x_t, alpha and sigma."""

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        return Prediction("eps", eps_hat(x_t, alpha, sigma), x_t, alpha, sigma)

    return denoise


def exact(schedule):
    """Knows that the data are one point: every displacement is noise."""
    return denoiser(schedule, lambda x, alpha, sigma: (x - 0.3 * alpha) / sigma)


def constant(schedule):
    """Predicts the same noise everywhere."""
    return denoiser(schedule, lambda x, alpha, sigma: torch.full_like(x, 0.1))


def literal(schedule):
    """Moves eps_hat by delta itself, as a summary of the paper says."""
    return denoiser(schedule, lambda x, alpha, sigma: x - alpha)


@every_schedule
@pytest.mark.parametrize("ascent", [0, 3])
def test_an_equivariant_denoiser_has_no_error(schedule, ascent: int) -> None:
    """In every norm, unit and time, also when the error is climbed."""
    for budget in (Budget("linf", 1.0), Budget("l2", 1e-3, "noise"), Budget("l1", 5.0)):
        found = equivariance_error(exact(schedule), schedule, X0, budget=budget, ascent=ascent)
        assert found.error < 1e-6
    assert_equivariant(exact(schedule), schedule, shape=(3, 4, 4), ascent=ascent)


@every_schedule
def test_an_invariant_denoiser_leaks_the_whole_perturbation(schedule) -> None:
    """Its error is 1, and the other way round."""
    assert equivariance_error(constant(schedule), schedule, X0).error == pytest.approx(1)
    found = equivariance_error(exact(schedule), schedule, X0, rule="invariant")
    assert found.error == pytest.approx(1)
    assert_invariant(constant(schedule), schedule, shape=(3,))


@every_schedule
def test_the_literal_shift_leaks_what_the_closed_form_says(schedule) -> None:
    """`eps_hat + delta` leaks `|1 - sigma|` of a perturbation into x0_hat."""
    for t in (schedule.t_min, (schedule.t_min + schedule.t_max) / 2):
        at = torch.full((4,), t, dtype=torch.float64)
        found = equivariance_error(literal(schedule), schedule, X0, t=at)
        assert found.error == pytest.approx(abs(1 - float(schedule.sigma(at)[0])), abs=1e-6)


def test_ascent_finds_the_worst_direction() -> None:
    """For a linear denoiser the worst error is a spectral norm, far above that of chance."""
    schedule = SCHEDULES[1]
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 4.0], dtype=torch.float64))
    linear = denoiser(schedule, lambda x, alpha, sigma: x @ matrix / sigma)
    x0, t = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([0.5])
    chance = equivariance_error(linear, schedule, x0, t=t, seed=1)
    worst = equivariance_error(linear, schedule, x0, t=t, seed=1, ascent=30)
    assert chance.error < 2.5
    assert worst.error == pytest.approx(3, rel=1e-3)
    assert float(worst.delta.norm()) <= 0.5 * (1 + 1e-9)
    assert abs(float(worst.delta[3])) == pytest.approx(0.5, rel=1e-2)


def test_budgets_in_noise_units_move_the_input_by_sigma() -> None:
    """The witness's delta is in units of x_t."""
    schedule, t = SCHEDULES[1], torch.full((4,), 0.25)
    found = equivariance_error(
        constant(schedule), schedule, X0, t=t, budget=Budget("linf", 0.8, "noise")
    )
    assert float(norms.norm(found.delta[None], "linf")) == pytest.approx(0.25 * 0.8)
    assert "linf radius 0.8 in noise units" in str(found)


def test_a_counterexample_is_shrunk() -> None:
    """A fault at times above 0.6 is told at the first such time, with the simplest numbers."""
    schedule = SCHEDULES[1]
    faulty = denoiser(
        schedule, lambda x, alpha, sigma: torch.where(sigma > 0.6, 0.0, (x - alpha) / sigma)
    )
    with pytest.raises(LawBroken) as caught:
        assert_equivariant(faulty, schedule, shape=(2,), budget=Budget("l2", 0.5), examples=50)
    assert str(caught.value).startswith(
        "not equivariant: found 100 % of a perturbation in x0_hat, wanted at most 1 % (x0_hat "
        "stays and eps_hat moves by delta / sigma); witness: t=0.6"
    )
    assert "seed=0, shape=[2]" in str(caught.value)


@given(x0=images((3,)), t=times(SCHEDULES[0], batch=1), ball=budgets(units=("image",)))
def test_it_can_be_used_inside_given(x0: Tensor, t: Tensor, ball: Budget) -> None:
    """With samples, times and a budget nothing is drawn inside."""
    schedule = SCHEDULES[0]
    one = x0[:1]
    assert_equivariant(exact(schedule), schedule, x0=one, times=t, budget=ball)
    if float(t) < 0.5:
        with pytest.raises(LawBroken, match="not equivariant"):
            assert_equivariant(constant(schedule), schedule, x0=one, times=t, budget=ball)


def test_samples_or_their_shape_are_needed() -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="give the shape of a sample, or samples x0"):
        assert_equivariant(exact(SCHEDULES[0]), SCHEDULES[0])


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "flow", "edm"])
def test_backbones_are_worn_as_denoisers(parametrization: str) -> None:
    """An untrained network is not equivariant; its error is a number whatever it predicts."""
    net = ToyNet(ToyNet.Settings(), Build(data=DataInfo(shape=(3,), count=9))).double()
    worn = denoiser_of(net, SCHEDULES[0], parametrization=parametrization)
    found = equivariance_error(worn, SCHEDULES[0], X0, ascent=2)
    assert 0 <= found.error < float("inf")


def box_blur(x: Tensor, *, padding: str = "circular") -> Tensor:
    """A symmetric convolution of each channel."""
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=x.dtype)
    mode = "circular" if padding == "circular" else "constant"
    padded = F.pad(x, (1, 1, 1, 1), mode=mode)
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])


def lopsided(x: Tensor) -> Tensor:
    """A convolution that knows left from right."""
    return box_blur(x) + x.roll(1, dims=-1)


@pytest.mark.parametrize("group", ["rotations", "flips", "dihedral", "shifts"])
@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 4, 6)])
def test_symmetric_networks_are_group_equivariant(group: str, shape: tuple[int, ...]) -> None:
    """A circular, symmetric blur commutes with every symmetry of the torus."""
    assert_group_equivariant(box_blur, group, shape=shape)


@pytest.mark.parametrize(
    ("network", "group", "witness"),
    [
        (lopsided, "flips", "a left-right flip"),
        (lopsided, "dihedral", "rotation|flip|transposition"),
        (lambda x: box_blur(x, padding="zeros"), "shifts", "a cyclic shift by"),
        (lambda x: x * torch.arange(1.0, 4).reshape(1, 3, 1, 1), "channel-permutations", "order"),
    ],
)
def test_broken_symmetries_are_told_with_their_element(network, group, witness: str) -> None:
    """The message names the element and the input."""
    with pytest.raises(LawBroken, match=f"not equivariant to {group}.*witness.*({witness})"):
        assert_group_equivariant(network, group, shape=(3, 6, 6))


def test_invariance_is_asked_of_classifiers() -> None:
    """A global mean does not move."""
    pooled = lambda x: box_blur(x).mean(dim=(2, 3))  # noqa: E731
    assert_group_equivariant(pooled, "dihedral", shape=(3, 6, 6), invariant=True)
    with pytest.raises(LawBroken, match="not invariant"):
        assert_group_equivariant(lopsided, "dihedral", shape=(3, 6, 6), invariant=True)


def test_backbones_can_be_asked() -> None:
    """A perceptron on pixels knows every pixel's place."""
    data = DataInfo(shape=(1, 4, 4), count=9, domain=Domain(-1, 1))
    net = MLP(MLP.Settings(width=8), Build(data=data))
    with torch.no_grad():
        net.linear_out.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = group_error(net, "flips", torch.ones(1, 1, 4, 4).cumsum(dim=-1))
    assert found.error > 0.1
    with pytest.raises(ValueError, match="unknown group 'mirror'; wanted one of rotations"):
        group_error(net, "mirror", torch.zeros(1, 1, 4, 4))


@given(x=images((2, 3), batch=(2, 5), domain=Domain(0, 1), dtype=torch.float32))
def test_images_keep_domain_shape_and_type(x: Tensor) -> None:
    """Values lie inside the domain."""
    assert x.shape[1:] == (2, 3)
    assert 2 <= x.shape[0] <= 5
    assert x.dtype == torch.float32
    assert bool(((x >= 0) & (x <= 1)).all())


@given(data=st.data(), schedule=st.sampled_from(SCHEDULES))
def test_times_are_training_times(data, schedule) -> None:
    """Inside the range, and of a discrete schedule its own."""
    t = data.draw(times(schedule))
    assert bool(((t >= schedule.t_min) & (t <= schedule.t_max)).all())
    assert_close(schedule.snap(t), t)


@given(data=st.data(), ball=budgets())
def test_deltas_lie_in_their_ball(data, ball: Budget) -> None:
    """In every norm, inside or on the boundary."""
    delta = data.draw(deltas(ball, (3, 2, 4)))
    assert delta.shape == (3, 2, 4)
    assert bool((norms.norm(delta, ball.norm) <= ball.radius * (1 + 1e-6)).all())


@given(level=noise_levels(0.1, 10))
def test_noise_levels_lie_between_their_ends(level: float) -> None:
    """Ratios of sigma and alpha."""
    assert 0.1 <= level <= 10 * (1 + 1e-9)
