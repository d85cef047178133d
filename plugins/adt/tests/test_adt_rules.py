"""Gradient rules: values that none of them changes, and what each lets a gradient do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from advdiff_adt.rules import LINEAR_RULES, RULES, rolled
from helpers_adt_paths import LINEAR, build_of, draws, eps_of, noise, sampler, sd_schedule
from torch import Tensor

from advdiff_core import Build, ContractError, Domain, Sampler
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.samplers import DDIM, Euler
from advdiff_core.schedules import Flow

CURVED = tuple(name for name in LINEAR if name != "ddpm-learned")


def curve(weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A smooth function of state, time and weights [3, 3]."""
    return lambda x, t: torch.tanh(x @ weights + t[:, None])


def weights() -> Tensor:
    """Weights [3, 3] of a small denoiser."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(3, 3, generator=generator, dtype=torch.float64) / 2).requires_grad_()


def run(made: Sampler, value: Callable[[Tensor, Tensor], Tensor], x: Tensor, rule: str, steps):
    """The sample of a rule."""
    denoise = eps_of(made.schedule, value)  # type: ignore[attr-defined]
    return rolled(made, denoise, x, draws(len(x)), grid=made.grid(), rule=rule, grad_steps=steps)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LINEAR)
def test_rules_leave_every_value_as_the_sampler_makes_it(name: str, rule: str) -> None:
    """All rules give the sampler's own numbers, bit for bit, with the same evaluations."""
    made, x, w = sampler(name), noise(), weights()
    denoise = eps_of(made.schedule, curve(w))  # type: ignore[attr-defined]
    plain = made.sample(denoise, x, draws())
    found = run(made, curve(w), x.clone().requires_grad_(), rule, (1, 3, 5))
    assert torch.equal(found.x0, plain.x0)
    assert found.nfe == plain.nfe
    assert found.x0.requires_grad


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LINEAR)
def test_rules_leave_every_value_of_a_shifted_path(name: str, rule: str) -> None:
    """As on an even one: the sampler's own numbers, on the times that `shift` moves."""
    flow, x, w = Flow(Flow.Settings(), Build()), noise(), weights()
    made = sampler(name, schedule=flow, grid="uniform", shift=3.0)
    denoise = eps_of(flow, curve(w), "flow")
    plain = made.sample(denoise, x, draws())
    found = rolled(made, denoise, x, draws(), grid=made.grid(), rule=rule, grad_steps=(1, 3, 5))
    assert torch.equal(found.x0, plain.x0)
    even = sampler(name, schedule=flow, grid="uniform").sample(denoise, x, draws())
    assert not torch.equal(even.x0, plain.x0)


@pytest.mark.parametrize("name", LINEAR)
def test_adt_passes_the_gradient_of_the_state_on_at_slope_one(name: str) -> None:
    """Under `adt` the sample's gradient towards its start is the identity, whatever the network."""
    made, x, w = sampler(name), noise().requires_grad_(), weights()
    found = run(made, curve(w), x, "adt", (0, 2)).x0
    ahead = noise(seed=8)
    (back,) = torch.autograd.grad(found, x, ahead)
    torch.testing.assert_close(back, ahead, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_drtune_passes_the_gradient_of_the_state_on_at_the_product_of_slopes(name: str) -> None:
    """Under `drtune` it is `alpha_0 / alpha_ts` times the identity."""
    made, x, w = sampler(name), noise().requires_grad_(), weights()
    found = run(made, curve(w), x, "drtune", (0, 2)).x0
    grid, alpha = made.grid(), made.schedule.alpha  # type: ignore[attr-defined]
    ahead = noise(seed=8)
    (back,) = torch.autograd.grad(found, x, ahead)
    torch.testing.assert_close(back, ahead * alpha(grid[-1]) / alpha(grid[0]), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("rule", LINEAR_RULES)
@pytest.mark.parametrize("name", LINEAR)
def test_linear_rules_agree_with_a_network_that_ignores_its_input(name: str, rule: str) -> None:
    """For a network of time alone, `drtune` is the whole gradient, in every sampler."""
    made, x = sampler(name), noise().requires_grad_()
    shift = torch.ones(3, dtype=torch.float64, requires_grad=True)

    def value(x_t: Tensor, t: Tensor) -> Tensor:
        return shift.expand_as(x_t) * (1 + t[:, None])

    ahead = noise(seed=8)
    whole = torch.autograd.grad(run(made, value, x, "full", all_steps(6)).x0, (x, shift), ahead)
    found = torch.autograd.grad(run(made, value, x, rule, all_steps(6)).x0, (x, shift), ahead)
    same = [torch.allclose(a, b, rtol=1e-9) for a, b in zip(whole, found, strict=True)]
    # The learned variance is a constant of these rules, and not of the whole gradient.
    expected = [True, name != "ddpm-learned"] if rule == "drtune" else [False, False]
    assert same == expected


def test_adt_gradient_of_a_network_of_time_alone_is_the_sum_of_its_coefficients() -> None:
    """With K = all steps and a constant network the gradient is `sum b_i`."""
    made, x = sampler("ddim"), noise(1)
    shift = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found = run(made, lambda x_t, _: shift.expand_as(x_t), x, "adt", all_steps(6)).x0
    (gradient,) = torch.autograd.grad(found.sum(), shift)
    grid = made.grid()
    _, b = made.linear_step(grid[:-1], grid[1:])
    torch.testing.assert_close(gradient, b.sum().expand(3), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", CURVED)
def test_adt_gradient_is_the_sum_of_what_each_step_does_by_itself(name: str) -> None:
    """Each state's change with the weights, states before it held, the method's memory not."""
    made, x, w = sampler(name), noise(), weights()

    def value(x_t: Tensor, t: Tensor) -> Tensor:
        return curve(w)(x_t.detach(), t)

    denoise, states = eps_of(made.schedule, value), []  # type: ignore[attr-defined]

    def held(_: int, state: Tensor, __: object) -> Tensor:
        states.append(state)
        return state.detach()

    ahead = noise(seed=8)
    rolled(made, denoise, x, draws(), grid=made.grid(), rule="full", grad_steps=all_steps(6),
           callback=held)  # fmt: skip
    wanted = torch.autograd.grad(sum((state * ahead).sum() for state in states), w)
    found = torch.autograd.grad((run(made, value, x, "adt", all_steps(6)).x0 * ahead).sum(), w)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", LINEAR_RULES)
@pytest.mark.parametrize("name", CURVED)
def test_only_the_chosen_steps_train(name: str, rule: str) -> None:
    """The gradient of K steps is the sum of those of each step alone; the rest gives none."""
    made, x, w = sampler(name), noise(), weights()

    def gradient(steps: tuple[int, ...]) -> Tensor:
        found = run(made, curve(w), x, rule, steps).x0
        return torch.autograd.grad(found.square().sum(), w)[0]

    both = gradient((1, 4))
    torch.testing.assert_close(both, gradient((1,)) + gradient((4,)), rtol=1e-10, atol=1e-12)
    assert float(gradient((1,)).abs().max()) > 0
    assert not run(made, curve(w), x, rule, ()).x0.requires_grad


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("rule", ["adt", "drtune"])
def test_linear_rules_give_networks_a_constant(name: str, rule: str) -> None:
    """No evaluation sees a state that wants a gradient."""
    made, x, w = sampler(name), noise().requires_grad_(), weights()

    def value(x_t: Tensor, t: Tensor) -> Tensor:
        assert not x_t.requires_grad
        return curve(w)(x_t, t)

    run(made, value, x, rule, (0, 3))


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "ddpm"])
def test_full_gradient_equals_finite_differences(name: str) -> None:
    """`full` is the derivative of the sampler, towards the start and the weights."""
    made, w = sampler(name, 4), weights()

    def sample(x: Tensor, w: Tensor) -> Tensor:
        return run(made, curve(w), x, "full", all_steps(4)).x0

    assert torch.autograd.gradcheck(sample, (noise().requires_grad_(), w), atol=1e-6, rtol=1e-5)


def test_last_k_is_the_whole_gradient_of_the_path_that_is_left() -> None:
    """`last-k` equals `full` on the last K steps from where the others arrive."""
    made, w = sampler("ddim"), weights()
    grid, states = made.grid(), []
    denoise = eps_of(made.schedule, curve(w))  # type: ignore[attr-defined]
    whole = rolled(made, denoise, noise(), draws(), grid=grid, rule="last-k", grad_steps=(4, 5),
                   callback=lambda _, state, __: states.append(state.detach()))  # fmt: skip
    rest = rolled(made, denoise, states[3], draws(), grid=grid[4:], rule="full", grad_steps=(0, 1))
    found, wanted = (torch.autograd.grad(s.x0.square().sum(), w)[0] for s in (whole, rest))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_none_trains_the_last_step_alone() -> None:
    """`none` gives the gradient of the last step, and nothing to the start."""
    made, x, w = sampler("ddim"), noise().requires_grad_(), weights()
    found = run(made, curve(w), x, "none", all_steps(6)).x0
    last = run(made, curve(w), x, "drtune", (5,)).x0
    pair = torch.autograd.grad(found.sum(), (w, x), allow_unused=True)
    torch.testing.assert_close(pair[0], torch.autograd.grad(last.sum(), w)[0])
    assert pair[1] is None
    assert not run(made, curve(w), x, "none", (0, 1)).x0.requires_grad


@pytest.mark.parametrize(("rule", "wanted"), [("adt", 1.0), ("drtune", 13.16), ("none", 0.0)])
def test_multipliers_on_the_path_of_stable_diffusion(rule: str, wanted: float) -> None:
    """50 DDIM steps of its schedule multiply a gradient by 1, by `1 / alpha_T`, or by 0."""
    made, x = sampler("ddim", schedule=sd_schedule()), noise(1).requires_grad_()
    # The leading grid of its pipelines, with an offset of one and the first time as its end.
    grid = torch.tensor([*range(982, 1, -20), 1], dtype=torch.float64) / 1000
    denoise = eps_of(made.schedule, curve(weights()))  # type: ignore[attr-defined]
    found = rolled(made, denoise, x, draws(1), grid=grid, rule=rule, grad_steps=all_steps(50))
    (back,) = torch.autograd.grad(found.x0.sum(), x, allow_unused=True)
    back = torch.zeros_like(x) if back is None else back
    torch.testing.assert_close(back, torch.full_like(back, wanted), rtol=2e-3, atol=0.0)


def test_rules_are_one_for_euler_steps_of_flow_matching() -> None:
    """A network of velocities under Euler steps: slopes are 1, so `drtune` is `adt`."""
    schedule = Flow(Flow.Settings(), Build())
    made = Euler(Euler.Settings(steps=5, grid="uniform"), build_of(schedule))
    x, w = noise().requires_grad_(), weights()
    denoise = eps_of(schedule, curve(w), kind="flow")

    def gradients(rule: str) -> tuple[Tensor, ...]:
        found = rolled(made, denoise, x, draws(), grid=made.grid(), rule=rule, grad_steps=(0, 2, 4))
        return torch.autograd.grad(found.x0.square().sum(), (x, w))

    for one, other in zip(gradients("adt"), gradients("drtune"), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_callback_sees_states_in_the_graph_and_may_replace_them(rule: str) -> None:
    """States told are the sampler's, and what the callback returns takes their place."""
    made, w = sampler("ddim"), weights()
    denoise = eps_of(made.schedule, curve(w))  # type: ignore[attr-defined]
    seen: list[Tensor] = []
    how = {"grid": made.grid(), "rule": rule, "grad_steps": all_steps(6)}
    found = rolled(made, denoise, noise(), draws(), **how,
                   callback=lambda _, state, __: seen.append(state))  # fmt: skip
    assert torch.equal(seen[-1], found.x0)
    if rule in ("adt", "drtune", "full"):
        grads = torch.autograd.grad(found.x0.sum(), seen)
        assert all(float(gradient.abs().min()) > 0 for gradient in grads)
    other = noise(seed=9)
    moved = rolled(made, denoise, noise(), draws(), **how,
                   callback=lambda n, _, __: other if n == 3 else None)  # fmt: skip
    after = made.sample(denoise, other, draws(), grid=made.grid()[4:])
    assert torch.equal(moved.x0, after.x0)


@pytest.mark.parametrize("rule", LINEAR_RULES)
def test_refuses_a_sampler_that_clips(rule: str) -> None:
    """Steps that clip are not linear: the message names sampler and mend."""
    build = build_of(domain=Domain(-1.0, 1.0))
    made = DDIM(DDIM.Settings(steps=4, clip_x0=True), build)
    with pytest.raises(ContractError, match="linear in states and predictions") as caught:
        run(made, curve(weights()), noise(), rule, (0,))
    assert "sampler DDIM" in str(caught.value)
    assert "clip_x0 = false" in str(caught.value)


def test_refuses_steps_that_the_grid_does_not_have() -> None:
    """A step beyond the grid is named."""
    with pytest.raises(ContractError, match="grad_steps holds 6, the grid has steps 0 to 5"):
        run(sampler("ddim"), curve(weights()), noise(), "adt", (2, 6))
