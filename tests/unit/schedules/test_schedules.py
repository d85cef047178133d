"""Noise schedules against their formulas, their published tables and the contract."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from advdiff_core.interfaces.component import Build
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear


def made(schedule, **settings):
    """A schedule with these settings."""
    return schedule(schedule.Settings(**settings), Build())


SCHEDULES = {
    "vp-linear": made(VPLinear),
    "vp-linear-2": made(VPLinear, num_steps=2),
    "vp-linear-6": made(VPLinear, num_steps=6),
    "vp-root": made(VPLinear, root=True, beta_start=0.00085, beta_end=0.012),
    "vp-sde": made(VPLinear, num_steps=0),
    "vp-sde-falling": made(VPLinear, num_steps=0, beta_min=20.0, beta_max=0.1),
    "vp-cosine": made(VPCosine),
    "vp-cosine-continuous": made(VPCosine, num_steps=0),
    "vp-cosine-no-offset": made(VPCosine, num_steps=0, s=0.0),
    "ve": made(VE),
    "edm": made(EDM),
    "flow": made(Flow),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def times(schedule, count=501, dtype=torch.float64):
    """Times all over the range."""
    return torch.linspace(schedule.t_min, schedule.t_max, count, dtype=dtype)


@pytest.mark.parametrize(
    ("schedule", "name"), [(VPLinear, "linear"), (VPCosine, "squaredcos_cap_v2")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vp_tables_match_diffusers(schedule, name, dtype):
    """alphas_cumprod at all 1000 training times, to 1e-6."""
    t = torch.arange(1, 1001).to(dtype) / 1000
    reference = DDPMScheduler(num_train_timesteps=1000, beta_schedule=name).alphas_cumprod
    ours = made(schedule)
    assert_close(ours.alpha(t).square().float(), reference, atol=1e-6, rtol=0)
    assert_close(ours.sigma(t).square().float(), 1 - reference, atol=1e-6, rtol=0)


def test_vp_root_is_the_schedule_of_stable_diffusion():
    """Square roots of the increments grow linearly: diffusers' "scaled_linear"."""
    keys = {"beta_start": 0.00085, "beta_end": 0.012}
    reference = DDPMScheduler(beta_schedule="scaled_linear", **keys).alphas_cumprod
    t = torch.arange(1, 1001).double() / 1000
    found = made(VPLinear, root=True, **keys).alpha(t).square().float()
    assert_close(found, reference, atol=1e-6, rtol=0)


def test_vp_root_needs_discrete_times():
    """In continuous time nothing has a square root that could grow."""
    with pytest.raises(ValueError, match="root: true is for discrete times, num_steps: 0 is con"):
        made(VPLinear, root=True, num_steps=0)


def test_vp_sde_is_the_formula_of_song():
    """Mean coefficient exp(-t^2 (19.9) / 4 - t (0.1) / 2)."""
    t = torch.tensor([1e-5, 0.3, 1.0], dtype=torch.float64)
    assert_close(made(VPLinear, num_steps=0).alpha(t), (-(t**2) * 19.9 / 4 - t * 0.05).exp())


def test_vp_cosine_is_the_formula_of_nichol():
    """f(t) / f(0) with a squared cosine."""
    t = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    f = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    wanted = torch.tensor([f(v) / f(0) for v in t.tolist()], dtype=torch.float64)
    assert_close(made(VPCosine, num_steps=0).alpha(t).square(), wanted)


def test_vp_linear_interpolates_the_logarithm_between_training_times():
    """Halfway between two times alpha_bar is their geometric mean; before the first, with 1."""
    schedule = made(VPLinear, num_steps=10)
    t = torch.tensor([0.0, 0.05, 0.1, 0.15, 0.2], dtype=torch.float64)
    bar = schedule.alpha(t).square()
    assert_close(bar[1], (bar[0] * bar[2]).sqrt())
    assert_close(bar[3], (bar[2] * bar[4]).sqrt())
    assert bar[0] == 1


def test_ve_is_geometric_and_falls_to_zero_below_its_range():
    """sigma_min at 0, sigma_max at 1, the geometric mean halfway; linear below."""
    sigma = made(VE).sigma(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=torch.float64))
    wanted = torch.tensor([0.0, 0.005, 0.01, math.sqrt(0.5), 50.0], dtype=torch.float64)
    assert_close(sigma, wanted)


def test_edm_and_flow_are_their_definitions():
    """One keeps the signal and has sigma = t; the other has alpha = 1 - t, sigma = t."""
    t = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert torch.equal(made(EDM).alpha(t), torch.ones(2).double())
    assert torch.equal(made(EDM).sigma(t), t)
    assert torch.equal(made(Flow).alpha(t), 1 - t)
    assert torch.equal(made(Flow).sigma(t), t)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_t_zero_is_exactly_without_noise(schedule, dtype):
    """Samplers end on the clean estimate itself, in either precision."""
    t = torch.tensor([schedule.t_zero], dtype=dtype)
    assert schedule.t_zero < schedule.t_min
    assert schedule.alpha(t).item() == 1
    assert schedule.sigma(t).item() == 0
    assert schedule.log_snr(t).item() == math.inf


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_snr_falls_strictly_and_agrees_with_the_scales(schedule, dtype):
    """The closed forms are 2 log(alpha / sigma)."""
    t = times(schedule, dtype=dtype)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    wanted = 2 * (schedule.alpha(t.double()) / schedule.sigma(t.double())).log()
    assert_close(
        log_snr, wanted.to(dtype), rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-3
    )


@every
def test_time_of_log_snr_inverts_log_snr(schedule):
    """To rounding, over the whole range, and clamped beyond it."""
    t = times(schedule)
    assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t, rtol=1e-7, atol=1e-12)
    beyond = torch.tensor([math.inf, 100.0, -100.0, -math.inf], dtype=torch.float64)
    low, high = schedule.t_min, schedule.t_max
    assert schedule.time_of_log_snr(beyond).tolist() == [low, low, high, high]


@every
def test_closed_inverse_agrees_with_bisection(schedule):
    """The contract's own inverse finds the same times."""
    log_snr = schedule.log_snr(times(schedule, 50))
    by_search = super(type(schedule), schedule).time_of_log_snr
    if type(schedule).__mro__[1].__name__ == "_VP":
        by_search = super(type(schedule).__mro__[1], schedule).time_of_log_snr
    assert_close(schedule.time_of_log_snr(log_snr), by_search(log_snr), rtol=1e-7, atol=1e-12)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_schedules_keep_dtype_and_shape(schedule, dtype):
    """Of the times they are given."""
    t = times(schedule, 6, dtype).reshape(2, 3)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.c_noise):
        assert function(t).dtype == dtype
        assert function(t).shape == (2, 3)
    assert schedule.time_of_log_snr(t).dtype == dtype


@every
def test_alpha_and_sigma_have_the_derivative_of_the_formula(schedule):
    """Against finite differences; between training times where there is a table."""
    t = (times(schedule, 7)[1:-1] + 0.3e-3 * schedule.t_max).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: (schedule.alpha(t), schedule.sigma(t)), (t,))


@every
def test_quantile_covers_the_training_times_and_no_more(schedule):
    """From the smallest to the largest, in range to the bit, each discrete time equally often."""
    count = 60 * (schedule.num_steps or 1)
    u = torch.cat([torch.arange(count).double() / count, torch.tensor([1 - 2**-53]).double()])
    t = schedule.quantile(u)
    assert t.min() == schedule.t_min
    assert t.max() <= schedule.t_max
    assert torch.equal(schedule.snap(t), t)
    if schedule.num_steps:
        assert len(t[:-1].unique()) == schedule.num_steps
        place = torch.bincount((t[:-1] * schedule.num_steps).round().long())[1:]
        assert (place == 60).all()


@every
def test_c_noise_grows_within_its_range(schedule):
    """From low to high, at most 1000."""
    c_noise = schedule.c_noise(times(schedule))
    low, high = schedule.c_noise_range()
    assert (c_noise.diff() > 0).all()
    assert low == pytest.approx(c_noise[0].item())
    assert high == pytest.approx(1000)


def test_edm_c_noise_is_even_in_log_sigma_and_finite_without_noise():
    """The geometric mean of the ends sits in the middle."""
    t = torch.tensor([0.0, 0.002, math.sqrt(0.002 * 80), 80.0], dtype=torch.float64)
    assert_close(made(EDM).c_noise(t), torch.tensor([0, 0, 500, 1000], dtype=torch.float64))


@pytest.mark.parametrize("schedule", [VPLinear, VPCosine])
def test_vp_table_made_in_inference_mode_serves_gradients_later(schedule):
    """A cached inference tensor would break the first backward through it."""
    fresh = made(schedule)
    with torch.inference_mode():
        fresh.alpha(torch.tensor([0.5]))
    t = torch.tensor([0.4321], requires_grad=True)
    fresh.alpha(t).sum().backward()
    assert t.grad is not None


@every
def test_scales_keep_their_digits_in_float32(schedule):
    """1 - alpha_bar at small times, and alpha at large ones, are differences of numbers near 1."""
    t = times(schedule, dtype=torch.float32)
    for scale in (schedule.alpha, schedule.sigma):
        assert_close(scale(t), scale(t.double()).float(), rtol=2e-6, atol=0)


@pytest.mark.parametrize(("schedule", "name"), [(VE, "0.01"), (EDM, "0.002")])
def test_noise_range_in_the_wrong_order_is_refused(schedule, name):
    """The message holds both values."""
    with pytest.raises(ValueError, match=f"sigma_min: {name} must be below sigma_max = 0.001"):
        schedule.Settings(sigma_max=0.001)


@pytest.mark.parametrize("schedule", [VPLinear, VPCosine])
def test_a_single_discrete_time_is_refused(schedule):
    """The message says what may be written."""
    with pytest.raises(
        ValueError, match=r"num_steps: 1 must be 0 \(continuous time\) or at least 2"
    ):
        schedule.Settings(num_steps=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every
def test_schedules_wait_for_no_device(schedule):
    """No synchronisation with the host once the table is on the device."""
    t = times(schedule, 6, torch.float32).cuda()
    schedule.alpha(t)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert schedule.alpha(t).is_cuda
        assert schedule.sigma(t).is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")
