"""Time shift: the rule by hand, window and cutoff, counting, gradients, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_atdiff.time_shift import TimeShift
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, ContractError, DataInfo, RecipeError
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Heun
from advdiff_core.schedules import EDM, VPCosine

sys.path.insert(0, str(Path(__file__).parent))
from helpers_atdiff_samplers import SCHEDULE, SEEDS, Gaussian, build, run, wrapped

SAMPLERS = [DDIM, DDPM, DPMpp2M, Heun]


def state(variance: float, count: int = 1, seed: int = 0) -> Tensor:
    """States [B, 3, 4, 4] of just this variance over their entries, and a mean of 0.3."""
    x = torch.randn(count, 48, generator=torch.Generator().manual_seed(seed)).double()
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return (0.3 + variance**0.5 * x).reshape(count, 3, 4, 4)


@pytest.mark.parametrize("inner", SAMPLERS)
def test_without_a_window_samples_are_the_samplers_own_bit_for_bit(inner: Any) -> None:
    """Nothing is asked at another time."""
    made = wrapped(TimeShift, inner, window=0.0)
    wanted, found = run(made.inner, Gaussian()), run(made, Gaussian())
    assert torch.equal(found.x0, wanted.x0)
    assert found.nfe == wanted.nfe


@given(number=st.integers(320, 950), off=st.integers(-40, 40))
def test_the_time_told_is_the_one_whose_variance_the_state_has(number: int, off: int) -> None:
    """Inside the window it is found exactly, beyond it the nearest end is told; float64."""
    made = wrapped(TimeShift, DDIM, window=0.04, cutoff=0.3)
    t = torch.tensor([number / 1000], dtype=torch.float64)
    fitting = torch.tensor([(number + off) / 1000], dtype=torch.float64)
    x = state(float(SCHEDULE.sigma(fitting).square()))
    wanted = (number + max(-20, min(20, off))) / 1000
    assert float(made.shifted(x, t, 1.0)) == pytest.approx(wanted, abs=1e-12)


@given(number=st.integers(400, 900), data=st.floats(0.05, 0.9))
def test_data_have_a_variance_where_one_is_given(number: int, data: float) -> None:
    """What is expected is `alpha^2 v + sigma^2`: a state that has it moves nowhere."""
    made = wrapped(TimeShift, DDIM, window=0.1, data_variance=data)
    t = torch.tensor([number / 1000], dtype=torch.float64)
    x = state(float(SCHEDULE.alpha(t).square() * data + SCHEDULE.sigma(t).square()))
    assert float(made.shifted(x, t, 1.0)) == pytest.approx(float(t), abs=1e-9)


def test_nothing_moves_below_the_cutoff_nor_at_first() -> None:
    """However little the variance fits; above it each sample moves on its own."""
    made = wrapped(TimeShift, DDIM, window=0.02, cutoff=0.5)
    x = torch.cat([state(1e-3), state(4.0)])
    for t in (0.3, 0.5, 1.0):
        times = torch.full((2,), t)
        assert torch.equal(made.shifted(x, times, 1.0), times)
    found = made.shifted(x, torch.full((2,), 0.7, dtype=torch.float64), 1.0)
    torch.testing.assert_close(found, torch.tensor([0.69, 0.71]).double(), rtol=0, atol=1e-6)
    continuous = VPCosine(VPCosine.Settings(num_steps=0), Build())
    told = build(schedule=continuous)
    endless = wrapped(TimeShift, DDIM, told=told, window=0.02)
    found = endless.shifted(x, torch.full((2,), 0.7, dtype=torch.float64), 0.9999)
    assert float(found[0]) == pytest.approx(0.69, abs=1e-3)


def test_the_step_goes_on_from_the_prediction_at_the_shifted_time() -> None:
    """DDIM by hand: x0_hat and eps_hat of `(x, t_s)`, along the grid of the sampler; float64."""
    made, denoise = wrapped(TimeShift, DDIM, window=0.05, steps=5), Gaussian(gain=1.1)
    states: list[Tensor] = []
    run(made, denoise, callback=lambda i, x, p: states.append(x))
    times, x, moved = made.grid(), denoise.inputs[0], 0
    for step in range(5):
        t = times[step].expand(len(x))
        told = made.shifted(x, t, float(times[0]))
        moved += int((told != t).sum())
        torch.testing.assert_close(denoise.times[step], told, rtol=0, atol=1e-9)
        prediction = Gaussian(gain=1.1)(x, told)
        after = times[step + 1]
        x = SCHEDULE.alpha(after) * prediction.x0 + SCHEDULE.sigma(after) * prediction.eps
        torch.testing.assert_close(states[step], x, rtol=1e-12, atol=1e-12)
    assert moved > 0


@pytest.mark.parametrize("inner", SAMPLERS)
def test_evaluations_are_those_of_the_sampler(inner: Any) -> None:
    """None is added."""
    made, denoise = wrapped(TimeShift, inner), Gaussian()
    assert run(made, denoise).nfe == len(denoise.times) == run(made.inner, Gaussian()).nfe


def test_images_depend_on_their_seed_alone() -> None:
    """Each has its own shift: alone, and in another order, the same image."""
    made = wrapped(TimeShift, DDPM, window=0.1)
    whole = run(made, Gaussian()).x0
    torch.testing.assert_close(run(made, Gaussian(), SEEDS[::-1]).x0.flip(0), whole)
    torch.testing.assert_close(run(made, Gaussian(), SEEDS[1:2]).x0, whole[1:2])


def test_gradients_pass_through_the_states_and_not_through_the_times() -> None:
    """With and without recomputing, the same; there is no linear step."""
    made = wrapped(TimeShift, DDIM, window=0.05, steps=4)
    x = state(1.0, 2).requires_grad_()
    slopes = []
    for checkpoint in (False, True):
        x0 = made.sample(Gaussian(), x, None, grad_steps=all_steps(4), checkpoint=checkpoint).x0
        slopes.append(torch.autograd.grad(x0.sum(), x)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert bool((slopes[0].abs() > 0).all())
    with pytest.raises(ContractError, match="the step of sampler TimeShift is not"):
        made.linear_step(torch.tensor(0.5), torch.tensor(0.4))


def test_recipes_without_such_a_variance_are_refused() -> None:
    """Exploding schedules, and samples of one entry."""
    exploding = build(schedule=EDM(EDM.Settings(), Build()))
    with pytest.raises(RecipeError, match="that of a variance-preserving schedule"):
        wrapped(TimeShift, DDIM, told=exploding)
    line = build(data=DataInfo(shape=(1,), count=9))
    with pytest.raises(RecipeError, match=r"samples of shape \[1\] have no variance") as caught:
        wrapped(TimeShift, DDIM, told=line)
    assert caught.value.faults[0].key == "sample.use"
