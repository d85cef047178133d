"""Grids of sampling times."""

import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from advdiff_core.interfaces.component import Build
from advdiff_core.math.grids import LAWS, is_straight, sampling_times, shifted
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


def test_shifted_times_are_those_of_the_paper():
    """Esser et al. (2024, eq. 23): `s t / (1 + (s - 1) t)`; the middle at s = 3 goes to 3/4."""
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    wanted = torch.tensor([0.0, 0.5, 0.75, 0.9, 1.0], dtype=torch.float64)
    assert_close(shifted(t, 3.0), wanted, rtol=1e-15, atol=0)
    assert_close(shifted(wanted, 1 / 3), t, rtol=1e-14, atol=0)


@pytest.mark.parametrize("law", LAWS)
def test_shifted_grid_is_the_laws_grid_moved(law):
    """Between the ends, and from where the shift leads to t_max: in closed form for even steps."""
    schedule, s = SCHEDULES["flow"], 3.0
    grid = sampling_times(schedule, 28, law=law, shift=s)
    first = schedule.t_max / (s - (s - 1) * schedule.t_max)
    even = sampling_times(schedule, 28, law=law, start=first)
    assert_close(grid, s * even / (1 + (s - 1) * even), rtol=1e-12, atol=0)
    if law == "uniform":
        times = np.linspace(first, 1e-4, 28)
        assert_close(grid[:-1], torch.from_numpy(s * times / (1 + (s - 1) * times)))


@pytest.mark.parametrize(("name", "law"), [*itertools.product(SCHEDULES, LAWS)])
def test_grid_with_shift_one_is_the_grid_itself(name, law):
    """Bit for bit, on every schedule."""
    schedule = SCHEDULES[name]
    moved = sampling_times(schedule, 9, law=law, shift=1.0)
    assert torch.equal(moved, sampling_times(schedule, 9, law=law))


def test_shifted_grid_starts_where_it_is_told():
    """As for a process that begins in between."""
    grid = sampling_times(SCHEDULES["flow"], 5, law="uniform", shift=3.0, start=0.6)
    assert grid[0] == 0.6
    assert_close(shifted(grid[:-1], 1 / 3).diff().diff(), torch.zeros(3).double())


def test_straight_is_what_flow_is_alone():
    """By its scales, whatever the name and range."""
    assert [name for name, one in SCHEDULES.items() if is_straight(one)] == ["flow"]
    assert is_straight(Flow(Flow.Settings(t_min=0.003, t_max=0.9), Build()))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("edm", {"shift": 3.0}, "a shift of 3; wanted at least 1, and alpha = 1 - t"),
        ("flow", {"shift": 0.5}, "a shift of 0.5; wanted at least 1, and alpha = 1 - t"),
        ("flow", {"shift": 10.0, "start": 9e-4}, "moves every time from 0.0001 above 0.0009"),
    ],
)
def test_grid_refuses_shifts_that_do_not_fit(name, keys, message):
    """The messages say what was found and what is wanted."""
    with pytest.raises(ValueError, match=message):
        sampling_times(SCHEDULES[name], 3, law="uniform", **keys)
