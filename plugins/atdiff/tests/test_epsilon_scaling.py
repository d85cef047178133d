"""Epsilon scaling: identity at 1, the paper's factor, counting, gradients, refusals."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_atdiff.epsilon_scaling import EpsilonScaling, place_on_grid
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import ContractError, RecipeError
from advdiff_core.interfaces.sampler import all_steps, with_steps
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Heun
from advdiff_core.settings import Spec

sys.path.insert(0, str(Path(__file__).parent))
from helpers_atdiff_samplers import SCHEDULE, SEEDS, Gaussian, run, wrapped

SAMPLERS = [DDIM, DDPM, DPMpp2M, Heun]


@pytest.mark.parametrize("inner", SAMPLERS)
def test_without_scaling_samples_are_the_samplers_own_bit_for_bit(inner: Any) -> None:
    """A factor of 1 changes nothing, for any sampler."""
    made = wrapped(EpsilonScaling, inner, scale=1.0)
    wanted, found = run(made.inner, Gaussian()), run(made, Gaussian())
    assert torch.equal(found.x0, wanted.x0)
    assert found.nfe == wanted.nfe


def test_each_step_divides_the_predicted_noise_by_the_paper_s_factor() -> None:
    """DDIM by hand, eq. 12 with eps / (b + k i), i = n - 1 ... 0; float64."""
    made, denoise = wrapped(EpsilonScaling, DDIM, scale=1.02, slope=0.003, steps=5), Gaussian()
    states: list[Tensor] = []
    run(made, denoise, callback=lambda i, x, p: states.append(x))
    times, x = made.grid(), denoise.inputs[0]
    for step, (t, after) in enumerate(itertools.pairwise(times)):
        eps = Gaussian()(x, t.expand(len(x))).eps / (1.02 + 0.003 * (4 - step))
        x0 = (x - SCHEDULE.sigma(t) * eps) / SCHEDULE.alpha(t)
        x = SCHEDULE.alpha(after) * x0 + SCHEDULE.sigma(after) * eps
        torch.testing.assert_close(states[step], x, rtol=1e-12, atol=1e-12)


@given(gain=st.floats(1.01, 1.1))
def test_scaling_undoes_noise_that_is_too_large_by_a_factor(gain: float) -> None:
    """A denoiser whose noise is `gain` times too large samples like the right one, scaled by it."""
    made = wrapped(EpsilonScaling, DDIM, scale=gain)
    found, wanted = run(made, Gaussian(gain=gain)).x0, run(made.inner, Gaussian()).x0
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@given(
    place=st.floats(0, 9),
    steps=st.integers(1, 9),
)
def test_places_on_a_grid_are_its_indices_and_linear_between(place: float, steps: int) -> None:
    """And the ends beyond them."""
    times = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64).square()
    index, share = min(int(place), steps - 1), min(place, steps) - min(int(place), steps - 1)
    t = times[index] + share * (times[index + 1] - times[index])
    found = place_on_grid(t[None], times)
    torch.testing.assert_close(
        found, torch.tensor([index + share], dtype=torch.float64), rtol=0, atol=1e-9
    )
    assert float(place_on_grid(torch.tensor([2.0]), times)) == 0
    assert float(place_on_grid(torch.tensor([-1.0]), times)) == steps


def test_a_grid_of_another_length_counts_its_own_steps() -> None:
    """The factor falls to `scale` at the last step of the grid that is given."""
    made = wrapped(EpsilonScaling, DDIM, scale=1.0, slope=0.01, steps=6)
    times = made.grid()[::2]
    found = made.factor(times[:-1], times)
    torch.testing.assert_close(found, torch.tensor([1.02, 1.01, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("inner", SAMPLERS)
def test_evaluations_are_those_of_the_sampler(inner: Any) -> None:
    """Counted where they are made; the callback gets what was used."""
    made, denoise = wrapped(EpsilonScaling, inner, scale=1.5), Gaussian()
    told: list[Tensor] = []
    found = run(made, denoise, callback=lambda i, x, p: told.append(p.eps))
    assert found.nfe == len(denoise.times) == run(made.inner, Gaussian()).nfe
    first = Gaussian()(denoise.inputs[0], denoise.times[0]).eps
    torch.testing.assert_close(told[0], first / 1.5, rtol=1e-12, atol=0)


def test_gradients_reach_the_start_through_scaled_steps() -> None:
    """DDIM is linear here, so the gradient of an entry is its slope; the same with checkpoints."""
    made = wrapped(EpsilonScaling, DDIM, scale=1.03, slope=0.001, steps=4)
    x = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    slopes = []
    for checkpoint in (False, True):
        x0 = made.sample(Gaussian(), x, None, grad_steps=all_steps(4), checkpoint=checkpoint).x0
        slopes.append(torch.autograd.grad(x0.sum(), x)[0])
    moved = made.sample(Gaussian(), x.detach() + 1, None).x0
    still = made.sample(Gaussian(), x.detach(), None).x0
    torch.testing.assert_close(slopes[0], moved - still, rtol=1e-9, atol=1e-12)
    assert torch.equal(slopes[0], slopes[1])


def test_the_linear_step_is_that_of_scaled_noise() -> None:
    """`a x + b eps_hat` with the network's own eps_hat repeats a step; other steps have none."""
    made, denoise = wrapped(EpsilonScaling, DDIM, scale=1.05, slope=0.002), Gaussian()
    states: list[Tensor] = []
    run(made, denoise, callback=lambda i, x, p: states.append(x))
    times = made.grid()
    for step in range(len(times) - 1):
        a, b = made.linear_step(times[step], times[step + 1])
        x = denoise.inputs[step]
        eps = Gaussian()(x, times[step].expand(len(x))).eps
        torch.testing.assert_close(states[step], a * x + b * eps, rtol=1e-10, atol=1e-12)
    with pytest.raises(ContractError, match="the step of sampler DDPM is not"):
        wrapped(EpsilonScaling, DDPM).linear_step(times[0], times[1])


def test_images_depend_on_their_seed_alone() -> None:
    """Alone, and in another order."""
    made = wrapped(EpsilonScaling, DDPM, slope=0.002)
    whole = run(made, Gaussian()).x0
    torch.testing.assert_close(run(made, Gaussian(), SEEDS[::-1]).x0.flip(0), whole)
    torch.testing.assert_close(run(made, Gaussian(), SEEDS[1:2]).x0, whole[1:2])


def test_steps_of_the_sampler_inside_can_be_set() -> None:
    """As metrics do that sample in several numbers of steps."""
    made = wrapped(EpsilonScaling, DDIM)
    spec = Spec(kind="sampler", use="it", settings=made.settings, component=EpsilonScaling)
    assert with_steps(spec, 11).settings.sampler.settings.steps == 11


def test_a_factor_that_falls_to_zero_is_refused() -> None:
    """When it is built, and for a longer grid when it samples."""
    with pytest.raises(RecipeError, match=r"the factor falls to -0\.25 over 6 steps") as caught:
        wrapped(EpsilonScaling, DDIM, scale=1.0, slope=-0.25)
    assert caught.value.faults[0].key == "sample.slope"
    made = wrapped(EpsilonScaling, DDIM, scale=1.0, slope=-0.1)
    with pytest.raises(ContractError, match=r"the factor falls to -0\.1 over 12 steps"):
        run(made, Gaussian(), grid=torch.linspace(1, 0, 13, dtype=torch.float64))


def test_half_precision_is_scaled_in_the_type_of_the_prediction() -> None:
    """The state's float32 stays float32."""
    made = wrapped(EpsilonScaling, DDIM)
    x = torch.zeros(2, 3, 4, 4)
    assert made.sample(Gaussian(), x, None).x0.dtype == torch.float32
