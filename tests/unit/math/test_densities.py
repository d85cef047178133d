"""Densities of training times."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from advdiff_core.draws import Draws
from advdiff_core.interfaces.component import Build
from advdiff_core.math.densities import LAWS, draw_times
from advdiff_core.math.grids import shifted
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear

SCHEDULES = {
    "vp-linear": VPLinear(VPLinear.Settings(), Build()),
    "vp-sde": VPLinear(VPLinear.Settings(num_steps=0), Build()),
    "vp-cosine": VPCosine(VPCosine.Settings(num_steps=6), Build()),
    "ve": VE(VE.Settings(), Build()),
    "edm": EDM(EDM.Settings(), Build()),
    "flow": Flow(Flow.Settings(), Build()),
}
EVEN = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_draw_times_stays_in_range_and_grows_with_u(schedule, law):
    """Also for the smallest and the largest uniform number there is."""
    u = torch.cat([torch.zeros(1).double(), EVEN, torch.tensor([1 - 2**-53]).double()])
    t = draw_times(schedule, u, law=law)
    assert t.dtype == torch.float64
    assert (t >= schedule.t_min).all()
    assert (t <= schedule.t_max).all()
    assert (t.diff() >= 0).all()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", ["vp-linear", "vp-cosine"])
def test_draw_times_hits_training_times_of_a_discrete_schedule(name, law):
    """Nothing between them is trained."""
    schedule = SCHEDULES[name]
    place = draw_times(schedule, EVEN, law=law) * schedule.num_steps
    assert_close(place, place.round(), atol=1e-9, rtol=0)


def test_uniform_times_of_a_discrete_schedule_are_equally_likely():
    """2000 even numbers hit each of 1000 times twice."""
    t = draw_times(SCHEDULES["vp-linear"], EVEN)
    index = (t * 1000).round().long()
    assert torch.equal(torch.bincount(index), torch.tensor([0] + [2] * 1000))


def test_log_normal_noise_levels_have_the_asked_moments():
    """Mean and deviation of log(sigma / alpha), where the range cuts nothing off."""
    t = draw_times(SCHEDULES["edm"], EVEN, law="log-normal", mean=-0.4, std=1.0)
    assert t.log().mean().item() == pytest.approx(-0.4, abs=1e-3)
    assert t.log().std().item() == pytest.approx(1.0, abs=5e-3)


def test_log_normal_times_of_flow_are_logit_normal_and_a_shift_is_a_mean():
    """Esser et al. (2024, eq. 19 and 23): moved by s, the mean grows by log s."""
    schedule = SCHEDULES["flow"]
    plain = draw_times(schedule, EVEN, law="log-normal", mean=0.0, std=1.0)
    assert_close(plain, torch.special.ndtri(EVEN).sigmoid())
    moved = draw_times(schedule, EVEN, law="log-normal", mean=math.log(3), std=1.0)
    assert_close(moved, shifted(plain, 3.0))


@pytest.mark.parametrize("law", LAWS)
def test_stratified_numbers_give_one_time_in_each_stratum(law):
    """A global batch of n covers n equally likely ranges of noise, each once."""
    draws = Draws((0, "times"), start=0, size=64, total=64, device="cpu")
    edges = draw_times(SCHEDULES["vp-sde"], torch.arange(64).double() / 64, law=law)
    t = draw_times(SCHEDULES["vp-sde"], draws.stratified(), law=law)
    stratum = torch.searchsorted(edges, t, right=True) - 1
    assert torch.equal(stratum.sort().values, torch.arange(64))


def test_draw_times_clamps_a_quantile_that_rounds_out_of_range():
    """A schedule's own quantile may be off by a rounding; training times never are."""
    schedule = SimpleNamespace(t_min=0.25, t_max=0.75, quantile=lambda u: u)
    t = draw_times(schedule, EVEN)
    assert t.min() == 0.25
    assert t.max() == 0.75


def test_unknown_density_is_named():
    """The message lists what may be written."""
    with pytest.raises(
        ValueError, match="unknown density of times 'cosine'; wanted one of uniform"
    ):
        draw_times(SCHEDULES["edm"], EVEN, law="cosine")
