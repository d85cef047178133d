"""The sampler of consistency models on the exact consistency function of Gaussian data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_atdiff.consistency_function import ConsistencyFunction
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.consistency_sampler import Consistency
from attrs import evolve
from torch import Tensor

from advdiff_core import Build, ContractError, NoiseSchedule, Prediction, RecipeError, expand
from advdiff_core.draws import SeedDraws
from advdiff_core.schedules import EDM, VE, Flow, VPLinear
from advdiff_core.testing.known import MEAN, STD, spread, start

SCHEDULES = (EDM, VE, Flow, VPLinear)
FORMS = ("boundary", "lcm")


def build_of(kind: type[NoiseSchedule]) -> Build:
    """What a sampler is told on a schedule."""
    schedule = kind(kind.Settings(), Build())
    return Build(path="sample", schedule=schedule)


def made(build: Build, **keys: Any) -> Consistency:
    """The sampler."""
    return Consistency(Consistency.Settings(**keys), build)


class Exact:
    """A denoiser whose consistency function is that of Gaussian data; notes what it is given."""

    def __init__(self, function: ConsistencyFunction) -> None:
        self.function, self.schedule = function, function.schedule
        self.seen: list[tuple[float, Tensor]] = []

    def starts(self, x: Tensor, t: Tensor) -> Tensor:
        """Where trajectories through `x` [B, ...] at `t` [B] are at the function's end."""
        alpha, tau = self.function.end
        z = (x - expand(self.schedule.alpha(t), x) * MEAN) / expand(spread(self.schedule, t), x)
        return alpha * (MEAN + (STD**2 + tau**2) ** 0.5 * z)

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction of x0 that makes f what it has to be."""
        self.seen.append((float(t[0]), x_t))
        a, b = (expand(scale, x_t) for scale in self.function.scales(t))
        x0 = (self.starts(x_t, t) - a * x_t) / b.clamp_min(1e-12)
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        return Prediction("x0", x0, x_t, alpha, sigma)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_one_step_ends_where_the_trajectory_starts(kind: type[NoiseSchedule], form: str) -> None:
    """One evaluation at t_max, in units of the data."""
    build = build_of(kind)
    sampler = made(build, function=form)
    exact = Exact(sampler.function)
    x = start(exact.schedule, [0, 1, 2], (3,), exact.schedule.t_max)
    found = sampler.sample(exact, x, SeedDraws([0, 1, 2]))
    t = torch.full((3,), exact.schedule.t_max, dtype=torch.float64)
    wanted = exact.starts(x, t) / sampler.function.end[0]
    torch.testing.assert_close(found.x0, wanted, rtol=1e-9, atol=1e-9)
    assert found.nfe == len(exact.seen) == 1


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("form", FORMS)
def test_noise_added_again_gives_the_law_of_that_time(kind: type[NoiseSchedule], form: str) -> None:
    """At every time the network sees inputs as spread as in training; samples are the data's."""
    sampler = made(build_of(kind), steps=4, function=form, grid="log-snr")
    exact = Exact(sampler.function)
    numbers = list(range(4000))
    x = exact.schedule.alpha(torch.tensor(exact.schedule.t_max)).item() * MEAN + (
        start(exact.schedule, numbers, (1,), exact.schedule.t_max)
    )
    found = sampler.sample(exact, x, SeedDraws(numbers))
    assert found.nfe == len(exact.seen) == 4
    for t, seen in exact.seen[1:]:
        time = torch.tensor(t, dtype=torch.float64)
        assert float(seen.std()) == pytest.approx(float(spread(exact.schedule, time)), rel=0.05)
    assert float(found.x0.mean()) == pytest.approx(MEAN, abs=0.05)
    assert float(found.x0.std()) == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_noise_added_again_makes_up_for_what_the_function_leaves(form: str) -> None:
    """Where a schedule ends at much noise: sqrt(tau^2 - tau_min^2) for f at t_min, tau for lcm."""
    schedule = VPLinear(VPLinear.Settings(num_steps=0, t_min=0.3), Build())
    sampler = made(Build(path="sample", schedule=schedule), times=(0.6,), function=form)
    exact, told = Exact(sampler.function), []
    x = start(schedule, [0, 1], (3,), schedule.t_max)
    sampler.sample(
        exact, x, SeedDraws([0, 1]), callback=lambda index, state, _: told.append(state)
    )  # fmt: skip
    ends = torch.tensor([0.6, 0.3], dtype=torch.float64)
    tau, tau_min = schedule.sigma(ends) / schedule.alpha(ends)
    left = tau_min if form == "boundary" else torch.zeros_like(tau_min)
    noise = SeedDraws([0, 1]).normal((2, 3)).double()
    wanted = schedule.alpha(ends[0]) * (told[0] + (tau**2 - left**2).sqrt() * noise)
    torch.testing.assert_close(exact.seen[1][1], wanted, rtol=1e-9, atol=1e-9)
    first = torch.full((2,), schedule.t_max, dtype=torch.float64)
    scale = float(schedule.alpha(ends[1])) if form == "boundary" else 1.0
    torch.testing.assert_close(told[0], exact.starts(x, first) / scale, rtol=1e-9, atol=1e-9)


def test_grid_leaves_out_the_smallest_time_and_ends_without_noise() -> None:
    """With n steps it takes the first n of n + 1 karras levels; times of one's own are kept."""
    build = build_of(EDM)
    levels = ConsistencyGrid(
        ConsistencyGrid.Settings(curriculum="constant", levels=4), evolve(build, images=1)
    ).grid(4, torch.device("cpu"))
    wanted = torch.cat([levels.flip(0)[:3], torch.zeros(1, dtype=torch.float64)])
    torch.testing.assert_close(made(build, steps=3).grid(), wanted, rtol=1e-12, atol=0)
    assert made(build).grid().tolist() == [80.0, 0.0]
    assert made(build, times=(2.5, 0.8)).grid().tolist() == [80.0, 2.5, 0.8, 0.0]


def test_function_is_that_of_the_recipes_grid_unless_said() -> None:
    """So that training and sampling cannot disagree by accident."""
    build = build_of(EDM)
    grid = ConsistencyGrid(ConsistencyGrid.Settings(sigma_data=0.7), build)
    told = evolve(build, times=grid)
    assert made(told).function == grid.function
    assert made(told, function="boundary").function.sigma_data == 0.5
    assert made(build).function == ConsistencyFunction(grid.schedule)


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"times": (0.5, 2.5)}, r"times \[0.5, 2.5\] do not fall from 80 to 0.002"),
        ({"times": (80.0,)}, r"times \[80.0\] do not fall from 80 to 0.002"),
        ({"times": (0.001,)}, r"times \[0.001\] do not fall from 80 to 0.002"),
        ({"times": (2.5,), "steps": 4}, "4 steps, and times for 2"),
    ],
)
def test_times_that_do_not_fit_are_refused(keys: dict[str, Any], wanted: str) -> None:
    """In one line with the key."""
    with pytest.raises(RecipeError, match=wanted) as caught:
        made(build_of(EDM), **keys)
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_caller_gets_wrong_is_refused() -> None:
    """A grid that rises, a step that is not there, a recipe without noise levels."""
    sampler = made(build_of(EDM))
    exact, x = Exact(sampler.function), torch.ones(1, 1)
    with pytest.raises(ContractError, match="does not fall from time to time"):
        sampler.sample(exact, x, SeedDraws([0]), grid=torch.tensor([0.0, 1.0]))
    with pytest.raises(ContractError, match="grad_steps holds 1, the grid has steps 0 to 0"):
        sampler.sample(exact, x, SeedDraws([0]), grad_steps=(1,))
    with pytest.raises(RecipeError, match="a consistency model needs a schedule"):
        made(Build(path="sample"))
