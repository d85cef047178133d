"""Samplers against the exact solution for Gaussian data, and against each other."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from advdiff_core.draws import SeedDraws
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun


def start(schedule, count, stream="start"):
    """Noise of the size of the schedule's end, one image a row."""
    noise = SeedDraws(range(count), stream=stream).normal((count, 2))
    return noise * schedule.sigma(torch.tensor(schedule.t_max))


@pytest.mark.parametrize(("sampler", "order"), [(DDIM, 1), (Euler, 1), (Heun, 2), (DPMpp2M, 2)])
@pytest.mark.parametrize("name", ["vp-sde", "vp-cosine", "ve", "edm", "flow"])
def test_solvers_converge_with_their_order(world, sampler, order, name):
    """The slope of log error over log steps, on the exact ODE solution in float64."""
    schedule = world.schedules[name]
    denoise, made = world.Gaussian(schedule), world.build(sampler, schedule)
    counts, errors = [32, 64, 128, 256], []
    for count in counts:
        grid = world.times(schedule, count)
        x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * schedule.sigma(grid[0])
        found = made.sample(denoise, x, SeedDraws(range(5)), grid=grid).x0
        errors.append((found - denoise.solution(x, grid[0], grid[-1])).abs().max().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.12)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("sampler", [DDPM, DDIM, Euler, Heun, DPMpp2M])
def test_samplers_give_the_same_for_every_parametrization(world, sampler, kind, schedule):
    """What a network predicts is a matter of training alone."""
    made = world.build(sampler, schedule, steps=6)
    x = start(schedule, 3).double()
    wanted = made.sample(world.Gaussian(schedule), x, SeedDraws(range(3))).x0
    found = made.sample(world.Gaussian(schedule, kind), x, SeedDraws(range(3))).x0
    assert_close(found, wanted, rtol=1e-6, atol=1e-6)


class Impulses:
    """Draws that are zero but for one number a row: draw k is 1 in row k + 2.

    For Gaussian data every sampler is affine in its start and its draws, so the rows of one batch
    hold its whole response, and the moments of what it samples follow without any chance.
    """

    def __init__(self):
        self.row = 1

    def normal(self, shape):
        """The next impulse."""
        self.row += 1
        return torch.zeros(shape, dtype=torch.float64).index_fill_(0, torch.tensor(self.row), 1.0)


def moments(world, made, grid):
    """Exact mean and standard deviation of the samples at the last time of `grid`."""
    alpha, sigma = made.schedule.alpha(grid[0]), made.schedule.sigma(grid[0])
    x = (alpha * world.mean).expand(len(grid) + 1, 1).clone()
    x[1] += (alpha**2 * world.std**2 + sigma**2).sqrt()
    found = made.sample(world.Gaussian(made.schedule), x, Impulses(), grid=grid).x0[:, 0]
    return found[0], (found[1:] - found[0]).norm()


@pytest.mark.parametrize(
    ("sampler", "keys"),
    [
        (DDPM, {"variance": "fixed-large"}),
        (DDPM, {"variance": "fixed-small"}),
        (DDIM, {"eta": 0.5}),
        (Euler, {"churn": 20.0}),
        (Heun, {"churn": 20.0, "churn_min": 0.1, "churn_max": 10.0}),
    ],
    ids=str,
)
def test_stochastic_samplers_converge_to_the_law_of_the_data(world, sampler, keys, schedule):
    """Mean right, and the error of the deviation at least halved by twice the steps."""
    made = world.build(sampler, schedule, **keys)
    errors = []
    for count in (150, 300):
        grid = world.times(schedule, count)
        alpha, sigma = schedule.alpha(grid[-1]), schedule.sigma(grid[-1])
        mean, std = moments(world, made, grid)
        assert_close(mean, alpha * world.mean, rtol=1e-3, atol=0)
        errors.append((std / (alpha**2 * world.std**2 + sigma**2).sqrt() - 1).abs().item())
    assert errors[1] < 0.03
    assert errors[1] < 0.53 * errors[0]


def test_ddim_without_noise_is_euler(world, schedule):
    """Both are the Euler step in sigma / alpha."""
    grid = world.times(schedule, 8)
    x = start(schedule, 3).double()
    runs = [
        world.build(sampler, schedule).sample(
            world.Gaussian(schedule), x, SeedDraws(range(3)), grid=grid
        )
        for sampler in (DDIM, Euler)
    ]
    assert_close(runs[0].x0, runs[1].x0)


def test_ddim_with_full_noise_is_ddpm_with_small_variance(world, schedule):
    """Song et al. (2021), section 4.1, for any scales."""
    x = start(schedule, 3).double()
    runs = [
        made.sample(world.Gaussian(schedule), x, SeedDraws(range(3))).x0
        for made in (
            world.build(DDIM, schedule, eta=1.0, steps=10),
            world.build(DDPM, schedule, variance="fixed-small", steps=10),
        )
    ]
    assert_close(runs[0], runs[1])


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_ddpm_step_is_the_posterior_of_the_paper(world, variance):
    """Ho et al. (2020), eq. 6 and 7, between neighbours of the discrete schedule."""
    schedule = world.schedules["vp-linear"]
    made = world.build(DDPM, schedule, variance=variance)
    t = torch.tensor([0.5, 0.499], dtype=torch.float64)
    bar = schedule.alpha(t).square()
    beta = 1 - bar[0] / bar[1]
    x = torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    denoise = world.Gaussian(schedule)
    x0_hat = denoise(x, t[:1]).x0
    mean = (
        bar[1].sqrt() * beta / (1 - bar[0]) * x0_hat
        + (1 - beta).sqrt() * (1 - bar[1]) / (1 - bar[0]) * x
    )
    share = 1 if variance == "fixed-large" else (1 - bar[1]) / (1 - bar[0])
    noise = SeedDraws([5]).normal((1, 2)).double()
    found = made.sample(denoise, x, SeedDraws([5]), grid=t).x0
    assert_close(found, mean + (share * beta).sqrt() * noise)


def test_dpmpp2m_has_first_order_ends(world):
    """Its first step and, by setting or at zero noise, its last are DDIM steps."""
    schedule = world.schedules["vp-sde"]
    grid = world.times(schedule, 2)
    x, draws = start(schedule, 2).double(), SeedDraws(range(2))
    denoise = world.Gaussian(schedule)
    ddim = world.build(DDIM, schedule)
    first = ddim.sample(denoise, x, draws, grid=grid[:2]).x0
    both = ddim.sample(denoise, x, draws, grid=grid).x0
    low = world.build(DPMpp2M, schedule, lower_order_final=True)
    high = world.build(DPMpp2M, schedule, lower_order_final=False)
    assert_close(low.sample(denoise, x, draws, grid=grid[:2]).x0, first)
    assert_close(low.sample(denoise, x, draws, grid=grid).x0, both)
    assert not torch.allclose(high.sample(denoise, x, draws, grid=grid).x0, both, rtol=1e-3)
    to_zero = torch.cat([grid[:2], torch.zeros(1).double()])
    found = high.sample(denoise, x, draws, grid=to_zero).x0
    assert_close(found, denoise(first, grid[1].expand(2)).x0)


@pytest.mark.parametrize("sampler", [DDPM, DDIM, Euler, Heun, DPMpp2M])
def test_one_step_ends_on_the_clean_estimate(world, sampler, schedule):
    """From the noisiest time straight to none."""
    x = start(schedule, 3)
    denoise = world.Gaussian(schedule)
    found = world.build(sampler, schedule, steps=1).sample(denoise, x, SeedDraws(range(3)))
    assert torch.equal(found.x0, denoise(x, torch.full((3,), schedule.t_max)).x0)
    assert found.nfe == 1
