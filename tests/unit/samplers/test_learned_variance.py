"""Ancestral sampling with a variance that the network says, between the two fixed ones."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from advdiff_core.draws import SeedDraws
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.samplers import DDPM
from advdiff_core.schedules import EDM, VPCosine, VPLinear
from advdiff_core.types import DataInfo

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEEDS = range(6)


def with_head(denoise, head):
    """A denoiser whose variance head says `head(x)`."""
    return lambda x_t, t: denoise(x_t, t)._replace(variance=head(x_t))


def start(seeds=SEEDS):
    """Noise [B, 3, 4, 4] of some images, float64."""
    return SeedDraws(seeds, stream="start").normal((len(seeds), 3, 4, 4)).double()


def sampled(world, schedule, variance, head=None, grid=None, **how):
    """Samples of the known Gaussian."""
    sampler = world.build(DDPM, schedule, variance=variance, steps=9)
    denoise = world.Gaussian(schedule)
    denoise = denoise if head is None else with_head(denoise, head)
    return sampler.sample(denoise, start(), SeedDraws(SEEDS), grid=grid, **how).x0


@pytest.mark.parametrize(("says", "end"), [(-1.0, "fixed-small"), (1.0, "fixed-large")])
def test_ends_of_the_range_are_the_fixed_variances(world, schedule, says, end):
    """On the grid of every schedule, and on a coarser one that is given."""
    coarse = world.times(schedule, 4)
    coarse = (
        torch.cat([coarse, torch.zeros(1, dtype=torch.float64)]) if schedule.t_zero == 0 else coarse
    )
    for grid in (None, coarse):
        found = sampled(world, schedule, "learned-range", lambda x: x * 0 + says, grid)
        assert_close(found, sampled(world, schedule, end, grid=grid), rtol=1e-12, atol=1e-12)


def test_between_them_the_logarithm_is_interpolated(world):
    """One step from 0.8 to 0.5 by hand: eq. 15 with the variances of that step; float64."""
    schedule = VPCosine(VPCosine.Settings(), None)
    t, after = torch.tensor([0.8, 0.5], dtype=torch.float64)
    head = torch.linspace(-1.5, 1.5, 48, dtype=torch.float64).reshape(1, 3, 4, 4)
    grid = torch.stack([t, after])
    found = sampled(world, schedule, "learned-range", lambda x: head.expand_as(x), grid)
    mean = sampled(world, schedule, "learned-range", lambda x: x * 0 - math.inf, grid)
    noise = SeedDraws(SEEDS).normal((6, 3, 4, 4)).double()
    keep = (schedule.alpha(t) / schedule.alpha(after)).square()
    beta = 1 - keep
    posterior = schedule.sigma(after).square() / schedule.sigma(t).square() * beta
    share = (head + 1) / 2
    log_variance = share * beta.log() + (1 - share) * posterior.log()
    assert_close(found - mean, (log_variance / 2).exp() * noise, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [5, 20])
def test_learned_range_matches_diffusers_on_fewer_steps(world, schedule, steps):
    """Its DDPMScheduler on twice the channels, on the same noise; clipped."""
    reference = DDPMScheduler(
        beta_schedule=schedule, clip_sample=True, variance_type="learned_range"
    )
    reference.set_timesteps(steps)
    ours = (VPLinear if schedule == "linear" else VPCosine).Settings()
    ours = (VPLinear if schedule == "linear" else VPCosine)(ours, None)
    sampler = world.build(DDPM, ours, variance="learned-range", clip_x0=True, domain=(-1, 1))
    head = lambda x: (3 * x).sin() * 1.2  # noqa: E731 - one head for both.
    times = [*((float(i) + 1) / 1000 for i in reference.timesteps), 0.0]
    generator = torch.Generator().manual_seed(0)
    denoise = world.Gaussian(ours, kind="eps")
    found = sampler.sample(
        with_head(denoise, head), start().float(), _Global(),
        grid=torch.tensor(times, dtype=torch.float64),
    ).x0  # fmt: skip
    x = start().float()
    for index, t in enumerate(reference.timesteps):
        time = torch.full((len(x),), times[index])
        both = torch.cat([denoise(x, time).eps, head(x)], dim=1)
        x = reference.step(both, t, x, generator=generator).prev_sample
    assert_close(found, x, atol=1e-4, rtol=1e-4)


class _Global:
    """One generator for the whole batch."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, shape):
        """The next numbers of the generator."""
        return torch.randn(shape, generator=self.generator)


def test_a_model_without_a_head_is_refused_before_the_run():
    """And one with it is not; classifiers and other kinds do not count."""
    info = {"kind": "backbone", "frozen": False, "parametrization": "eps"}
    judge = ModelInfo(kind="backbone", frozen=True)
    for learns in (False, True):
        models = {"student": ModelInfo(**info, learns_sigma=learns), "judge": judge}
        told = Build(
            path="sample", data=DataInfo(shape=(2,), count=1), models=models,
            schedule=EDM(EDM.Settings(), Build()),
        )  # fmt: skip
        if learns:
            DDPM(DDPM.Settings(variance="learned-range"), told)
            continue
        DDPM(DDPM.Settings(), told)
        with pytest.raises(RecipeError, match="the network has no variance head") as caught:
            DDPM(DDPM.Settings(variance="learned-range"), told)
        assert caught.value.faults[0].key == "sample.variance"
        assert "set learn_sigma = true" in caught.value.faults[0].fix


def test_a_prediction_without_a_variance_is_refused(world):
    """By the first step, in one line."""
    words = "variance = 'learned-range': the network has no variance head"
    with pytest.raises(ContractError, match=words) as caught:
        sampled(world, VPLinear(VPLinear.Settings(), None), "learned-range")
    assert "\n" not in str(caught.value)


def test_gradients_reach_the_variance_head(world):
    """A step that keeps a graph keeps that of the head, too; the last step adds no noise."""
    head = torch.zeros(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    schedule = VPLinear(VPLinear.Settings(), None)
    found = sampled(
        world, schedule, "learned-range", lambda x: head.expand_as(x), grad_steps=tuple(range(9))
    )
    (gradient,) = torch.autograd.grad(found.sum(), head)
    assert gradient.abs().min() > 0
