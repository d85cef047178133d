"""What every sampler promises: counting, seeds, gradients, clipping, messages."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from advdiff_core.draws import SeedDraws
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from advdiff_core.schedules import Flow

SAMPLERS = {
    "ddpm": (DDPM, {}),
    "ddim": (DDIM, {}),
    "ddim-eta": (DDIM, {"eta": 1.0}),
    "euler": (Euler, {}),
    "euler-churn": (Euler, {"churn": 5.0}),
    "heun": (Heun, {}),
    "heun-churn": (Heun, {"churn": 5.0}),
    "dpm++2m": (DPMpp2M, {}),
}
every = pytest.mark.parametrize(("sampler", "keys"), SAMPLERS.values(), ids=SAMPLERS)


@every
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_nfe_counts_the_calls_of_the_denoiser(world, schedule, sampler, keys, steps):
    """One a step for first-order and multistep samplers, 2n - 1 for Heun."""
    denoise = world.Gaussian(schedule)
    found = world.build(sampler, schedule, steps=steps, **keys).sample(
        denoise, torch.zeros(2, 2), SeedDraws(range(2))
    )
    assert found.nfe == denoise.calls == (2 * steps - 1 if sampler is Heun else steps)


@every
def test_an_image_is_the_same_whatever_the_batch(world, schedule, sampler, keys):
    """Bit for bit: alone, in a batch, and in another order."""
    made = world.build(sampler, schedule, steps=5, **keys)

    def images(seeds):
        x = SeedDraws(seeds, stream="start").normal((len(seeds), 2, 3))
        return made.sample(world.Gaussian(schedule), x, SeedDraws(seeds)).x0

    together = images([3, 11, 4])
    for index, seed in enumerate([3, 11, 4]):
        assert torch.equal(images([seed])[0], together[index])
    assert torch.equal(images([4, 3]), together[[2, 0]])


@every
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_full_gradient_is_that_of_finite_differences(world, sampler, keys, checkpoint):
    """With respect to the start and to a parameter of the denoiser, in float64."""
    schedule = world.schedules["vp-sde"]
    made = world.build(sampler, schedule, **keys)
    grid = torch.cat([world.times(schedule, 3), torch.zeros(1).double()])

    def run(x, mean):
        denoise = world.Gaussian(schedule, mean=mean.sin())
        return made.sample(
            denoise, x, SeedDraws([1, 2]), grid=grid, grad_steps=all_steps(4), checkpoint=checkpoint
        ).x0

    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), mean.requires_grad_()))


@every
def test_checkpointing_changes_neither_samples_nor_gradients_nor_nfe(world, sampler, keys):
    """A recomputed step sees the numbers it saw; evaluations of the backward are not counted."""
    schedule = world.schedules["vp-linear"]
    made = world.build(sampler, schedule, steps=4, **keys)
    outcomes = []
    for checkpoint in (False, True):
        mean = torch.tensor(0.4, requires_grad=True)
        x = SeedDraws([1, 2], stream="start").normal((2, 2)).requires_grad_()
        denoise = world.Gaussian(schedule, mean=mean)
        found = made.sample(
            denoise, x, SeedDraws([1, 2]), grad_steps=(1, 2, 3), checkpoint=checkpoint
        )  # fmt: skip
        assert denoise.calls == found.nfe
        found.x0.square().sum().backward()
        again = 0 if not checkpoint else 5 if sampler is Heun else 3
        assert denoise.calls == found.nfe + again
        outcomes.append((found.x0, mean.grad, torch.tensor(found.nfe)))
        assert x.grad is None
    for plain, again in zip(*outcomes, strict=True):
        assert torch.equal(plain, again)


def ddim_by_hand(world, schedule, grid, x, mean, grad_steps):
    """DDIM as one would write it, with explicit detaching."""
    denoise = world.Gaussian(schedule, mean=mean)
    for index, (t, t_next) in enumerate(itertools.pairwise(grid)):
        with torch.set_grad_enabled(index in grad_steps):
            made = denoise(x, t.expand(len(x)))
            x = schedule.alpha(t_next) * made.x0 + schedule.sigma(t_next) * made.eps
    return x


@pytest.mark.parametrize(
    "grad_steps", [c for n in range(1, 5) for c in itertools.combinations(range(4), n)], ids=str
)
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_run_through_exactly_the_steps_asked_for(world, grad_steps, checkpoint):
    """Every subset of four steps, against a loop that detaches by hand."""
    schedule = world.schedules["flow"]
    grid = world.times(schedule, 4)
    grads = []
    for by_hand in (True, False):
        x = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(2, 2).requires_grad_()
        mean = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        if by_hand:
            found = ddim_by_hand(world, schedule, grid, x, mean, grad_steps)
        else:
            found = world.build(DDIM, schedule).sample(
                world.Gaussian(schedule, mean=mean), x, SeedDraws([1, 2]), grid=grid,
                grad_steps=grad_steps, checkpoint=checkpoint,
            ).x0  # fmt: skip
        assert found.requires_grad == (3 in grad_steps)
        if found.requires_grad:
            found.square().sum().backward()
        grads.append((x.grad, mean.grad))
    for wanted, got in zip(*grads, strict=True):
        assert (wanted is None) == (got is None)
        if wanted is not None:
            assert_close(got, wanted)


def test_multistep_memory_enters_a_gradient_step_detached(world):
    """The estimate that DPM++ keeps from an untracked step carries no graph and no gradient."""
    schedule = world.schedules["vp-sde"]
    made = world.build(DPMpp2M, schedule, lower_order_final=False)
    grid = world.times(schedule, 3)
    draws = SeedDraws([1])
    states = []
    x = torch.full((1, 2), 0.3, dtype=torch.float64)
    # The gradient through the last step alone, from finite differences of that step alone.
    denoise = world.Gaussian(schedule)
    made.sample(denoise, x, draws, grid=grid, callback=lambda i, s, p: states.append((s, p.x0)))
    mean = torch.tensor(world.mean, dtype=torch.float64, requires_grad=True)
    found = made.sample(
        world.Gaussian(schedule, mean=mean), x, draws, grid=grid, grad_steps=(2,)
    ).x0  # fmt: skip
    (gradient,) = torch.autograd.grad(found.sum(), mean)
    # x_3 = c x_2 + g ((1 + w) x0_2 - w x0_1) with x0_1 fixed: only x0_2 depends on the mean.
    steps = schedule.log_snr(grid).diff() / 2
    weight = 1 + steps[2] / steps[1] / 2
    gone = -torch.expm1(-steps[2])
    alpha, sigma = schedule.alpha(grid[2]), schedule.sigma(grid[2])
    of_mean = sigma**2 / (alpha**2 * world.std**2 + sigma**2)
    assert_close(gradient, 2 * schedule.alpha(grid[3]) * gone * weight * of_mean)


@every
def test_no_step_keeps_a_graph_unless_asked(world, sampler, keys):
    """The default is sampling without gradients, whatever requires them."""
    schedule = world.schedules["edm"]
    mean = torch.tensor(0.4, requires_grad=True)
    x = torch.zeros(1, 2, requires_grad=True)
    found = world.build(sampler, schedule, steps=3, **keys).sample(
        world.Gaussian(schedule, mean=mean), x, SeedDraws([0])
    )
    assert not found.x0.requires_grad


@every
def test_callback_sees_every_step(world, sampler, keys):
    """Index, new state, and the prediction made at the step's start."""
    schedule = world.schedules["vp-linear"]
    seen = []
    found = world.build(sampler, schedule, steps=3, **keys).sample(
        world.Gaussian(schedule), torch.zeros(1, 2), SeedDraws([0]),
        callback=lambda index, x, prediction: seen.append((index, x, prediction)),
    )  # fmt: skip
    assert [index for index, _, _ in seen] == [0, 1, 2]
    assert seen[-1][1] is found.x0
    assert torch.equal(seen[-1][2].x0, found.x0)


@pytest.mark.parametrize("sampler", [DDIM, Euler])
def test_linear_step_is_the_step(world, schedule, sampler):
    """Its a x + b eps_hat gives what sampling over the pair gives, also to zero noise."""
    made = world.build(sampler, schedule)
    times = [*world.times(schedule, 3).tolist(), schedule.t_zero]
    x = torch.tensor([[0.4, -1.3]], dtype=torch.float64)
    denoise = world.Gaussian(schedule)
    for pair in itertools.combinations(times, 2):
        t, t_next = torch.tensor(pair, dtype=torch.float64)
        a, b = made.linear_step(t, t_next)
        wanted = made.sample(denoise, x, SeedDraws([0]), grid=torch.stack([t, t_next])).x0
        assert_close(a * x + b * denoise(x, t.expand(1)).eps, wanted)


def test_linear_step_keeps_dtype_and_digits(world):
    """float32 times give float32 coefficients, computed in float64."""
    made = world.build(DDIM, world.schedules["vp-linear"])
    t, t_next = torch.tensor([0.5, 0.9]), torch.tensor([0.499, 0.899])
    found = made.linear_step(t, t_next)
    wanted = made.linear_step(t.double(), t_next.double())
    for coefficient, exact in zip(found, wanted, strict=True):
        assert coefficient.dtype == torch.float32
        assert_close(coefficient, exact.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("sampler", "keys", "message"),
    [
        (DDPM, {}, "sampler DDPM is not a"),
        (Heun, {}, "sampler Heun is not a"),
        (DPMpp2M, {}, "sampler DPMpp2M is not a"),
        (DDIM, {"eta": 0.5}, "sampler DDIM .* without noise and clipping"),
        (DDIM, {"clip_x0": True}, "sampler DDIM .* without noise and clipping"),
        (Euler, {"churn": 1.0}, "sampler Euler .* without churn and clipping"),
        (Euler, {"clip_x0": True}, "sampler Euler .* without churn and clipping"),
    ],
    ids=str,
)
def test_linear_step_is_refused_by_name_where_there_is_none(world, sampler, keys, message):
    """Stochastic, clipped and higher-order steps have no such coefficients."""
    made = world.build(sampler, world.schedules["flow"], domain=(-1, 1), **keys)
    t = torch.tensor(0.5)
    with pytest.raises(ContractError, match=message) as caught:
        made.linear_step(t, t / 2)
    assert caught.value.where == "sample"
    assert caught.value.fix


@every
def test_clip_x0_keeps_every_estimate_in_the_domain(world, schedule, sampler, keys):
    """With a denoiser that leaves it, the last image is inside the data's range."""
    made = world.build(sampler, schedule, domain=(0.0, 0.25), clip_x0=True, steps=4, **keys)
    x = SeedDraws(range(8), stream="start").normal((8, 2)) * schedule.sigma(
        torch.tensor(schedule.t_max)
    )
    found = made.sample(world.Gaussian(schedule), x, SeedDraws(range(8))).x0
    assert found.min() >= 0
    assert found.max() <= 0.25
    assert found.max() > 0


def test_clipped_estimates_take_the_noise_that_explains_the_input(world):
    """The noise follows the clipped x0, unless keep_eps asks for the network's own."""
    schedule = world.schedules["flow"]
    x = torch.tensor([[2.0]], dtype=torch.float64)
    grid = torch.tensor([0.5, 0.25], dtype=torch.float64)
    denoise = world.Gaussian(schedule)
    made = denoise(x, grid[:1])
    assert made.x0.item() > 0.5
    for keep, eps in ((False, (2.0 - 0.5 * 0.5) / 0.5), (True, made.eps.item())):
        sampler = world.build(
            DDIM, schedule, domain=(0.0, 0.5), clip_x0=True, keep_eps=keep
        )  # fmt: skip
        found = sampler.sample(denoise, x, SeedDraws([0]), grid=grid).x0.item()
        assert found == pytest.approx(0.75 * 0.5 + 0.25 * eps)


def test_churn_stays_within_its_limits_and_the_schedule(world):
    """Noise is put back between churn_min and churn_max only, and never beyond t_max."""
    schedule = world.schedules["edm"]
    grid = torch.tensor([80.0, 10.0, 1.0, 0.1, 0.0], dtype=torch.float64)

    def evaluated(**keys):
        times = []
        denoise = world.Gaussian(schedule)
        made = world.build(Euler, schedule, **keys)
        made.sample(
            lambda x, t: (times.append(t[0].item()), denoise(x, t))[1],
            torch.zeros(1, 2, dtype=torch.float64), SeedDraws([0]), grid=grid,
        )  # fmt: skip
        return times

    gamma = 2**0.5 - 1
    assert evaluated() == pytest.approx([80, 10, 1, 0.1])
    most = 1 + gamma
    assert evaluated(churn=100.0) == pytest.approx([80, 10 * most, most, 0.1 * most])
    assert evaluated(churn=0.4) == pytest.approx([80, 11, 1.1, 0.11])
    limits = {"churn_min": 0.5, "churn_max": 5.0}
    assert evaluated(churn=0.4, **limits) == pytest.approx([80, 10, 1.1, 0.1])


def test_churn_noise_scales_what_is_put_back(world):
    """S_noise multiplies the fresh noise of one churned step."""
    schedule = world.schedules["edm"]
    grid = torch.tensor([10.0, 9.0], dtype=torch.float64)
    seen = {}
    for inflation in (1.0, 2.0):
        made = world.build(Euler, schedule, churn=0.1, churn_noise=inflation)
        made.sample(
            world.Gaussian(schedule), torch.zeros(1, 2, dtype=torch.float64), SeedDraws([0]),
            grid=grid, callback=lambda i, x, p, key=inflation: seen.update({key: p.x_t}),
        )  # fmt: skip
    wanted = (11**2 - 10**2) ** 0.5 * SeedDraws([0]).normal((1, 2)).double()
    assert_close(seen[1.0], wanted)
    assert_close(seen[2.0], 2 * wanted)


@every
def test_grid_is_the_settings_law(world, schedule, sampler, keys):
    """Steps and law are obeyed; DDPM and DDIM follow the schedule when not told."""
    made = world.build(sampler, schedule, steps=6, grid="exponential", **keys)
    assert made.grid().shape == (7,)
    steps = schedule.log_snr(made.grid()[:-1]).diff()
    assert_close(steps, steps.mean().expand_as(steps), rtol=1e-6, atol=0)
    karras = world.build(sampler, schedule, steps=6, grid="karras", **keys).grid()
    trailing = world.build(sampler, schedule, steps=6, grid="trailing", **keys).grid()
    follows = sampler in (DDIM, DDPM) and schedule is not world.schedules["edm"]
    default = world.build(sampler, schedule, steps=6, **keys).grid()
    assert torch.equal(default, trailing if follows else karras)


@every
def test_shift_moves_the_grid_and_is_off_at_one(world, sampler, keys):
    """A factor of sigma / alpha on flow; 1, the default, leaves the grid as it is to the bit."""
    schedule = world.schedules["flow"]
    plain, one, moved = (
        world.build(sampler, schedule, steps=6, grid="uniform", **keys, **more).grid()
        for more in ({}, {"shift": 1.0}, {"shift": 3.0})
    )
    assert torch.equal(plain, one)
    assert moved[0] == plain[0] == schedule.t_max
    assert moved[-1] == plain[-1] == 0.0
    assert_close(moved[5] / (1 - moved[5]), 3 * plain[5] / (1 - plain[5]))
    steps = (moved[:-1] / (3 - 2 * moved[:-1])).diff()
    assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=0)


@every
@pytest.mark.parametrize("name", ["vp-linear", "vp-sde", "vp-cosine", "ve", "edm"])
def test_shift_is_refused_off_straight_paths(world, sampler, keys, name):
    """Other schedules have other times; the message names the key and both mends."""
    with pytest.raises(RecipeError) as caught:
        world.build(sampler, world.schedules[name], shift=3.0, **keys)
    assert "sample.shift: found 3 for a schedule that is not alpha = 1 - t" in str(caught.value)
    assert 'set it to 1, or schedule.use = "flow"' in str(caught.value)


def test_shift_is_refused_where_no_time_is_left(world):
    """Of a range of times that it moves out of itself."""
    schedule = Flow(Flow.Settings(t_min=0.49, t_max=0.51), Build())
    with pytest.raises(RecipeError, match=r"to 0\.742424, beyond t_max = 0\.51 - lower"):
        world.build(Euler, schedule, shift=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_state_and_times_share_a_dtype_of_at_least_float32(world, dtype):
    """A sampler never runs in bfloat16, and does not promote float32."""
    schedule = world.schedules["vp-linear"]
    denoise, seen = world.Gaussian(schedule), []
    found = world.build(Heun, schedule, steps=2, churn=1.0).sample(
        lambda x, t: (seen.append((x.dtype, t.dtype)), denoise(x, t))[1],
        torch.zeros(1, 2, dtype=dtype), SeedDraws([0]),
    )  # fmt: skip
    wanted = torch.promote_types(dtype, torch.float32)
    assert found.x0.dtype == wanted
    assert set(seen) == {(wanted, wanted)}


@pytest.mark.parametrize(
    "grid", [[0.5], [0.2, 0.5], [0.5, 0.5], [[0.5, 0.2]], [0.5, float("nan")]], ids=str
)
def test_a_grid_that_does_not_fall_is_refused(world, grid):
    """The message gives its shape and the form wanted."""
    made = world.build(DDIM, world.schedules["flow"])
    with pytest.raises(ContractError, match="does not fall from time to time") as caught:
        made.sample(
            world.Gaussian(made.schedule), torch.zeros(1, 2), SeedDraws([0]),
            grid=torch.tensor(grid),
        )  # fmt: skip
    assert "noisiest first" in caught.value.fix


def test_a_gradient_step_that_does_not_exist_is_refused(world):
    """The message names it and the steps there are."""
    made = world.build(DDIM, world.schedules["flow"], steps=3)
    with pytest.raises(ContractError, match="grad_steps holds 3, the grid has steps 0 to 2"):
        made.sample(
            world.Gaussian(made.schedule), torch.zeros(1, 2), SeedDraws([0]), grad_steps=(1, 3)
        )


def refused(make):
    """The one fault of a refused recipe."""
    with pytest.raises(RecipeError) as caught:
        make()
    (fault,) = caught.value.faults
    return fault.code, fault.key, fault.message, fault.fix


def test_a_sampler_without_schedule_is_refused_as_r10():
    """The message names the sampler, the mend the table to add."""
    assert refused(lambda: DDIM(DDIM.Settings(), Build(path="sample"))) == (
        "R10",
        "sample.use",
        "sampler DDIM needs a noise schedule, the recipe has none",
        "add a [schedule] table",
    )


def test_clip_x0_without_a_domain_is_refused_as_r10(world):
    """Points have no range to clip to; the mend says what to set."""
    schedule = world.schedules["flow"]
    wanted = ("found true for data that has no domain to clip to",
              "set it to false, or set data.domain")  # fmt: skip
    found = refused(lambda: world.build(DDPM, schedule, clip_x0=True))
    assert found == ("R10", "sample.clip_x0", *wanted)
    found = refused(lambda: DDPM(DDPM.Settings(clip_x0=True), Build(schedule=schedule)))
    assert found == ("R10", "clip_x0", *wanted)


def test_all_steps_lists_every_step():
    """The value of `grad_steps` for the full gradient."""
    assert all_steps(3) == (0, 1, 2)
