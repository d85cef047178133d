"""Grids of sampling times."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from advdiff_core.interfaces.component import Build
from advdiff_core.math.grids import LAWS, sampling_times
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear

SCHEDULES = {
    "vp-linear": VPLinear(VPLinear.Settings(), Build()),
    "vp-linear-6": VPLinear(VPLinear.Settings(num_steps=6), Build()),
    "vp-sde": VPLinear(VPLinear.Settings(num_steps=0), Build()),
    "vp-cosine": VPCosine(VPCosine.Settings(), Build()),
    "vp-cosine-continuous": VPCosine(VPCosine.Settings(num_steps=0), Build()),
    "ve": VE(VE.Settings(), Build()),
    "edm": EDM(EDM.Settings(), Build()),
    "flow": Flow(Flow.Settings(), Build()),
}


@pytest.mark.parametrize(("name", "law"), [*itertools.product(SCHEDULES, LAWS)])
def test_grid_falls_from_the_noisiest_time_to_no_noise_for_every_count(name, law):
    """Right count, right ends, strictly decreasing and inside the trained range, n = 1 to 1000."""
    schedule = SCHEDULES[name]
    for count in range(1, 1001):
        grid = sampling_times(schedule, count, law=law)
        assert grid.shape == (count + 1,)
        assert grid.dtype == torch.float64
        assert (grid.diff() < 0).all(), count
        assert grid[0] == schedule.t_max
        assert grid[-1] == schedule.t_zero
        assert grid[-2] >= schedule.t_min


@pytest.mark.parametrize("law", ["karras", "exponential", "log-snr", "uniform"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_grid_evaluates_the_smallest_training_time_last(name, law):
    """All laws but trailing go down to t_min before the last step."""
    schedule = SCHEDULES[name]
    assert sampling_times(schedule, 5, law=law)[-2] == schedule.t_min


def test_karras_grid_is_that_of_the_paper():
    """Equation 5, in sigma, which is the time of edm."""
    low, high, count = 0.002 ** (1 / 7), 80 ** (1 / 7), 18
    wanted = [(high + i / (count - 1) * (low - high)) ** 7 for i in range(count)]
    grid = sampling_times(SCHEDULES["edm"], count, law="karras")
    assert_close(grid, torch.tensor([*wanted, 0.0], dtype=torch.float64))


def test_karras_grid_with_rho_one_is_even_in_the_noise_level():
    """The exponent reaches the formula."""
    grid = sampling_times(SCHEDULES["edm"], 6, law="karras", rho=1.0)
    assert_close(grid[:-1], torch.linspace(80, 0.002, 6, dtype=torch.float64))


@pytest.mark.parametrize("law", ["exponential", "log-snr"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_log_snr_grid_has_even_steps_of_log_snr(name, law):
    """On every schedule, by its own inverse."""
    schedule = SCHEDULES[name]
    steps = schedule.log_snr(sampling_times(schedule, 9, law=law)[:-1]).diff()
    assert_close(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=0)


@pytest.mark.parametrize("count", [1, 4, 30, 999, 1000])
def test_trailing_grid_is_that_of_ddpm_indices(count):
    """Lin et al. (2024): round(T - k T / n), counted from 1."""
    grid = sampling_times(SCHEDULES["vp-linear"], count, law="trailing")
    wanted = np.round(np.arange(1000, 0, -1000 / count))[:count]
    assert_close(grid[:-1] * 1000, torch.from_numpy(wanted), rtol=0, atol=1e-9)


def test_grid_refuses_no_steps_and_unknown_laws():
    """The messages say what was found and what is wanted."""
    with pytest.raises(ValueError, match="a grid of 0 steps; wanted at least 1"):
        sampling_times(SCHEDULES["edm"], 0)
    with pytest.raises(ValueError, match="unknown grid law 'leading'; wanted one of karras"):
        sampling_times(SCHEDULES["edm"], 3, law="leading")
