"""Sampling of latent consistency models, beside the scheduler of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_atdiff.consistency_sampler import Consistency
from advdiff_atdiff.latent_grid import LatentGrid
from diffusers import LCMScheduler
from diffusers.schedulers import scheduling_lcm
from torch import Tensor

from advdiff_core import Build, DataInfo, Prediction, RecipeError, expand
from advdiff_core.draws import SeedDraws
from advdiff_core.schedules import VPLinear

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {"beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = VPLinear(VPLinear.Settings(root=True, **SD), Build())
SHAPE = (2, 2, 4, 4)


def sampler(skip: int = 20, **keys: Any) -> Consistency:
    """The sampler of a recipe that draws its times from a latent grid."""
    grid = LatentGrid(LatentGrid.Settings(skip=skip), Build(schedule=SCHEDULE))
    build = Build(
        path="sample", schedule=SCHEDULE, times=grid, data=DataInfo(shape=SHAPE[1:], count=9)
    )
    return Consistency(Consistency.Settings(**keys), build)


def eps_hat(x: Tensor, index: Tensor) -> Tensor:
    """A toy network [B, ...] that reads timesteps counted from 0 [B]."""
    return torch.tanh(2 * x) * (0.5 + expand(index / 1000, x))


def denoise(x_t: Tensor, t: Tensor) -> Prediction:
    """The same network as samplers see it."""
    scales = [expand(scale(t), x_t) for scale in (SCHEDULE.alpha, SCHEDULE.sigma)]
    return Prediction("eps", eps_hat(x_t, (t * 1000).round() - 1), x_t, *scales)


def reference(x: Tensor, steps: int, skip: int) -> Tensor:
    """What LCMScheduler makes of `x` [B, ...] with our table of increments, in float64."""
    scheduler = LCMScheduler(beta_schedule="scaled_linear", clip_sample=False, **SD)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    scheduler.alphas_cumprod = SCHEDULE.alpha(t).square()
    scheduler.set_timesteps(steps, original_inference_steps=1000 // skip)
    # As numbers: of tensors the scheduler would make coefficients in float32.
    for timestep in scheduler.timesteps.tolist():
        index = torch.full((SHAPE[0],), float(timestep), dtype=torch.float64)
        x = scheduler.step(eps_hat(x, index), timestep, x).prev_sample
    return x


@pytest.mark.parametrize(("steps", "skip"), [(1, 20), (2, 20), (4, 20), (8, 20), (3, 50), (50, 20)])
def test_samples_are_those_of_the_scheduler_of_diffusers(
    steps: int, skip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same start and noise, in float64, to eleven digits."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).double()
    found = sampler(skip, steps=steps).sample(denoise, x, SeedDraws(range(2), stream="steps"))
    draws = SeedDraws(range(2), stream="steps")
    monkeypatch.setattr(
        scheduling_lcm, "randn_tensor", lambda shape, **_: draws.normal(tuple(shape)).double()
    )
    assert found.nfe == steps
    torch.testing.assert_close(found.x0, reference(x, steps, skip), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 16, 49, 50])
def test_times_are_those_of_the_scheduler_of_diffusers(steps: int) -> None:
    """Every number of steps, also where it does not divide the grid."""
    scheduler = LCMScheduler(beta_schedule="scaled_linear", **SD)
    scheduler.set_timesteps(steps, original_inference_steps=50)
    times = sampler(steps=steps).grid()
    assert ((times[:-1] * 1000).round().long() - 1).tolist() == scheduler.timesteps.tolist()
    assert times[-1] == SCHEDULE.t_zero


def test_more_steps_than_times_are_refused() -> None:
    """R10, with the number of times."""
    with pytest.raises(RecipeError) as caught:
        sampler(steps=51)
    (fault,) = caught.value.faults
    wanted = ("R10", "sample.steps", "51 steps on the 50 times of latent-grid")
    assert (fault.code, fault.key, fault.message) == wanted
    assert fault.fix


def test_keys_of_its_own_win_over_the_grid() -> None:
    """With a function named, times and function are those of the sampler's keys."""
    own = sampler(steps=2, function="boundary", grid="uniform")
    assert own.function.form == "boundary"
    assert not torch.equal(own.grid(), sampler(steps=2).grid())
