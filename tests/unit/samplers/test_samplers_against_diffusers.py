"""Samplers against diffusers: its published sums, and its schedulers run side by side.

The sums stand in `tests/schedulers` of diffusers, which runs each scheduler over the analytic model
`x * t / (t + 1)` of the integer timestep t. Its timestep i is our time `(i + 1) / num_steps`.
"""

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch.testing import assert_close

from advdiff_core.draws import SeedDraws
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from advdiff_core.schedules import EDM, Flow, VPLinear
from advdiff_core.types import Prediction, expand

# Converted tensors inside diffusers, under the newest numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def model(x, timestep):
    """The analytic model of diffusers' tests."""
    return x * timestep / (timestep + 1)


def deterministic_sample():
    """The start of diffusers' tests, [4, 3, 8, 8]."""
    return (torch.arange(768).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def vp_denoiser(schedule, kind="eps"):
    """The analytic model as a denoiser on a discrete schedule."""

    def denoise(x_t, t):
        index = (t * schedule.num_steps).round() - 1
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        return Prediction(kind, model(x_t, expand(index, x_t)), x_t, alpha, sigma)

    return denoise


def times_of(timesteps, end=0.0):
    """Our grid for integer timesteps of a schedule of 1000."""
    return torch.tensor([*((float(i) + 1) / 1000 for i in timesteps), end], dtype=torch.float64)


def made(world, sampler, schedule, domain=(-1, 1), **settings):
    """A sampler on a schedule with these settings."""
    return world.build(sampler, schedule, domain=domain, **settings)


def linear_vp():
    """The schedule of these tests."""
    return VPLinear(VPLinear.Settings(), None)


@pytest.mark.parametrize(("kind", "total"), [("eps", 172.0067), ("v", 52.5302)])
def test_ddim_gives_the_sum_diffusers_publishes(world, kind, total):
    """Ten leading steps, clipped, with the network's own eps kept: both parametrizations."""
    reference = DDIMScheduler(
        **BETAS, clip_sample=True, prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind]
    )
    reference.set_timesteps(10)
    sampler = made(world, DDIM, linear_vp(), clip_x0=True, keep_eps=True)
    ours = sampler.sample(
        vp_denoiser(sampler.schedule, kind), deterministic_sample(), SeedDraws(range(4)),
        grid=times_of(reference.timesteps),
    ).x0  # fmt: skip
    theirs = deterministic_sample()
    for t in reference.timesteps:
        theirs = reference.step(model(theirs, t), t, theirs).prev_sample
    assert ours.abs().sum().item() == pytest.approx(total, abs=1e-2)
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_ddim_with_noise_and_rederived_eps_matches_diffusers(world):
    """An eta of 0.7 with diffusers' use_clipped_model_output, on the same noise."""
    reference = DDIMScheduler(**BETAS, clip_sample=True)
    reference.set_timesteps(10)
    sampler = made(world, DDIM, linear_vp(), clip_x0=True, eta=0.7)
    ours = sampler.sample(
        vp_denoiser(sampler.schedule), deterministic_sample(), SeedDraws(range(4)),
        grid=times_of(reference.timesteps),
    ).x0  # fmt: skip
    theirs, draws = deterministic_sample(), SeedDraws(range(4))
    for t in reference.timesteps:
        theirs = reference.step(
            model(theirs, t), t, theirs, eta=0.7, use_clipped_model_output=True,
            variance_noise=draws.normal((4, 3, 8, 8)),
        ).prev_sample  # fmt: skip
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class GlobalDraws:
    """The noise of diffusers' tests: one generator for the whole batch."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, shape):
        """The next numbers of the generator."""
        return torch.randn(shape, generator=self.generator)


@pytest.mark.parametrize(("kind", "total"), [("eps", 258.9606), ("v", 202.0296)])
def test_ddpm_gives_the_sum_diffusers_publishes(world, kind, total):
    """All 1000 steps with their noise, the posterior's variance and clipping."""
    sampler = made(world, DDPM, linear_vp(), variance="fixed-small", clip_x0=True)
    assert_close(sampler.grid(), times_of(range(999, -1, -1)))
    ours = sampler.sample(
        vp_denoiser(sampler.schedule, kind), deterministic_sample(), GlobalDraws()
    ).x0  # fmt: skip
    assert ours.abs().sum().item() == pytest.approx(total, abs=1e-2)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large"])
def test_ddpm_matches_diffusers_on_fewer_steps(world, variance):
    """Leading steps (after others diffusers adds noise to the end), both variances."""
    reference = DDPMScheduler(
        **BETAS, clip_sample=True, variance_type=variance.replace("-", "_")
    )  # fmt: skip
    reference.set_timesteps(20)
    sampler = made(world, DDPM, linear_vp(), variance=variance, clip_x0=True)
    ours = sampler.sample(
        vp_denoiser(sampler.schedule), deterministic_sample(), GlobalDraws(),
        grid=times_of(reference.timesteps),
    ).x0  # fmt: skip
    theirs, generator = deterministic_sample(), torch.Generator().manual_seed(0)
    for t in reference.timesteps:
        theirs = reference.step(model(theirs, t), t, theirs, generator=generator).prev_sample
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "end", "lower", "mean"),
    [
        ("eps", "sigma_min", False, 0.3301),
        ("v", "sigma_min", False, 0.2251),
        ("eps", "sigma_min", True, None),
        ("eps", "zero", False, None),
        ("v", "zero", True, None),
    ],
)
def test_dpmpp2m_gives_the_mean_diffusers_publishes(world, kind, end, lower, mean):
    """Ten steps; to the smallest training noise as published, and to none."""
    reference = DPMSolverMultistepScheduler(
        **BETAS, solver_order=2, algorithm_type="dpmsolver++", lower_order_final=lower,
        final_sigmas_type=end, prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind],
    )  # fmt: skip
    reference.set_timesteps(10)
    sampler = made(world, DPMpp2M, linear_vp(), lower_order_final=lower)
    ours = sampler.sample(
        vp_denoiser(sampler.schedule, kind), deterministic_sample(), SeedDraws(range(4)),
        grid=times_of(reference.timesteps, end=0.0 if end == "zero" else 1 / 1000),
    ).x0  # fmt: skip
    theirs = deterministic_sample()
    for t in reference.timesteps:
        theirs = reference.step(model(theirs, t), t, theirs).prev_sample
    if mean is not None:
        assert ours.abs().mean().item() == pytest.approx(mean, abs=1e-3)
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_edm_euler_gives_the_sum_diffusers_publishes(world):
    """Ten karras steps with EDM's preconditioning."""
    reference = EDMEulerScheduler(num_train_timesteps=256, sigma_min=0.002, sigma_max=80.0)
    reference.set_timesteps(10)
    schedule = EDM(EDM.Settings(), None)
    sampler = made(world, Euler, schedule, steps=10)
    assert_close(sampler.grid(), reference.sigmas.double(), rtol=1e-6, atol=1e-6)

    def denoise(x_t, t):
        sigma = expand(t, x_t)
        scaled = x_t / (sigma**2 + 0.25).sqrt()
        raw = model(scaled, sigma.log() / 4)
        x0 = 0.25 / (sigma**2 + 0.25) * x_t + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * raw
        return Prediction("x0", x0, x_t, torch.ones_like(sigma), sigma)

    x = deterministic_sample() * reference.init_noise_sigma
    ours = sampler.sample(denoise, x, SeedDraws(range(4))).x0
    theirs = x
    for t in reference.timesteps:
        raw = model(reference.scale_model_input(theirs, t), t)
        theirs = reference.step(raw, t, theirs).prev_sample
    assert ours.abs().sum().item() == pytest.approx(34.1855, abs=1e-3)
    assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def sigma_denoiser(reference, *, rescale):
    """The analytic model in sigma space, at the timesteps that diffusers gives its noise levels.

    With `rescale` the sample itself becomes the scaled model input, as in the loops of diffusers'
    tests, which overwrite it; the estimate is then made from that.
    """
    levels = dict(
        zip(reference.sigmas.tolist(), [*reference.timesteps.tolist(), None], strict=True)
    )

    def denoise(z, t):
        sigma = expand(t, z)
        nearest = min(levels, key=lambda level: abs(level - t[0].item()))
        scaled = z / (sigma**2 + 1).sqrt()
        eps = model(scaled, levels[nearest])
        return SimpleNamespace(x0=(scaled if rescale else z) - sigma * eps, eps=eps)

    return denoise


def sigma_grid(reference):
    """The noise levels of a scheduler as times of the edm schedule, each once."""
    return torch.tensor(sorted(set(reference.sigmas.tolist()), reverse=True), dtype=torch.float64)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "karras", "total"),
    [
        (Euler, EulerDiscreteScheduler, False, 10.0807),
        (Euler, EulerDiscreteScheduler, True, 124.52299),
        (Heun, HeunDiscreteScheduler, False, 0.1233),
        (Heun, HeunDiscreteScheduler, True, 0.00015),
    ],
)
def test_euler_and_heun_give_the_sums_diffusers_publishes(world, sampler, scheduler, karras, total):
    """In sigma space, on its own noise levels, with its tests' loop and with a proper one."""
    schedule = EDM(EDM.Settings(sigma_max=1000.0), None)
    for rescale in (True, False):
        reference = scheduler(num_train_timesteps=1100, **BETAS, use_karras_sigmas=karras)
        reference.set_timesteps(10)
        z = deterministic_sample() * reference.init_noise_sigma
        ours = made(world, sampler, schedule).sample(
            sigma_denoiser(reference, rescale=rescale), z, SeedDraws(range(4)),
            grid=sigma_grid(reference),
        ).x0  # fmt: skip
        theirs = z
        for t in reference.timesteps:
            scaled = reference.scale_model_input(theirs, t)
            theirs = scaled if rescale else theirs
            theirs = reference.step(model(scaled, t), t, theirs).prev_sample
        if rescale:
            assert ours.abs().sum().item() == pytest.approx(total, abs=1e-2)
        assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_euler_on_flow_matches_diffusers(world):
    """A step of the interpolation's velocity, on the same levels."""
    reference = FlowMatchEulerDiscreteScheduler()
    reference.set_timesteps(10)
    levels = reference.sigmas.double()
    sampler = made(world, Euler, Flow(Flow.Settings(), None))

    def denoise(x_t, t):
        sigma = expand(t, x_t)
        return Prediction("flow", model(x_t, 1000 * sigma), x_t, 1 - sigma, sigma)

    ours = sampler.sample(
        denoise, deterministic_sample(), SeedDraws(range(4)), grid=levels.clamp(max=0.9999)
    ).x0  # fmt: skip
    theirs = deterministic_sample()
    for t in reference.timesteps:
        theirs = reference.step(model(theirs, t), t, theirs).prev_sample
    assert_close(ours, theirs, atol=3e-4, rtol=1e-3)


#: Time that diffusers' grid of a shift of 3 ends at before it is moved: 1/1000, moved already once.
MOVED = 3 / 1000 / (1 + 2 / 1000)


def shifted_flow():
    """The schedule of straight paths with that end, and a start at noise to rounding."""
    return Flow(Flow.Settings(t_min=MOVED, t_max=1 - 1e-9), None)


def test_shifted_grid_is_that_of_diffusers(world):
    """Stable Diffusion 3: 28 steps, even but for a shift of 3."""
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(28)
    sampler = made(world, Euler, shifted_flow(), steps=28, grid="uniform", shift=3.0)
    assert_close(sampler.grid(), reference.sigmas.double(), rtol=1e-6, atol=1e-6)
    assert_close(1000 * sampler.grid()[:-1], reference.timesteps.double(), rtol=1e-6, atol=1e-3)


def test_euler_on_a_shifted_grid_matches_diffusers(world):
    """28 steps of a velocity that depends on state and time, each on its own grid."""
    reference = FlowMatchEulerDiscreteScheduler(shift=3.0)
    reference.set_timesteps(28)
    sampler = made(world, Euler, shifted_flow(), steps=28, grid="uniform", shift=3.0)

    def denoise(x_t, t):
        sigma = expand(t, x_t)
        # A hundredth of diffusers' timestep, lest the analytic model be x itself.
        return Prediction("flow", model(x_t, 10 * sigma), x_t, 1 - sigma, sigma)

    x = deterministic_sample().double()
    ours = sampler.sample(denoise, x, SeedDraws(range(4))).x0
    theirs = x
    for t in reference.timesteps:
        theirs = reference.step(model(theirs, t.double() / 100), t, theirs).prev_sample
    assert_close(ours, theirs.double(), atol=1e-5, rtol=1e-5)
