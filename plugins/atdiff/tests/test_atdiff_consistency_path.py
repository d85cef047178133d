"""Steps along a trajectory in float64: solvers, the step of consistency training, telescoping."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from advdiff_atdiff.consistency_function import ConsistencyFunction
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.consistency_queries import Place, _true_step, ode_step
from torch import Tensor

from advdiff_core import Build, Noised, NoiseSchedule, expand
from advdiff_core.schedules import EDM, VE, Flow, VPLinear
from advdiff_core.testing.known import MEAN, Known, spread

SCHEDULES = (EDM, VE, Flow, VPLinear)


def setting_of(kind: type[NoiseSchedule], count: int = 18) -> tuple[NoiseSchedule, list[Tensor]]:
    """A schedule and its grid of `count` levels, the noisiest first, as times [1]."""
    schedule = kind(kind.Settings(), Build())
    build = Build(path="schedule.density.sampler", schedule=schedule)
    keys = ConsistencyGrid.Settings(curriculum="constant", levels=count)
    grid = ConsistencyGrid(keys, build).grid(count, torch.device("cpu"))
    return schedule, [t.reshape(1) for t in grid.flip(0)]


def network(known: Known) -> Any:
    """A denoiser as queries run it."""
    return SimpleNamespace(denoise=lambda x, t, labels=None: known(x, t))


def path(kind: type[NoiseSchedule], count: int, solver: str) -> tuple[NoiseSchedule, list[Place]]:
    """The solver's points from t_max to t_min for Gaussian data."""
    schedule, grid = setting_of(kind, count)
    teacher = network(Known(schedule))
    start = torch.randn(1, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    places = [Place(schedule.sigma(grid[0]) * start, grid[0])]
    for t in grid[1:]:
        places.append(ode_step(teacher, places[-1], t, schedule, solver=solver))
    return schedule, places


def exact(schedule: NoiseSchedule, place: Place, t: Tensor) -> Tensor:
    """Where the true trajectory through a point is at `t` [1]."""
    z = (place.x - schedule.alpha(place.t) * MEAN) / spread(schedule, place.t)
    return schedule.alpha(t) * MEAN + spread(schedule, t) * z


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solver_converges_to_the_true_trajectory_in_its_order(
    kind: type[NoiseSchedule], solver: str, order: int
) -> None:
    """Four times as many levels make the error of the end 4^p times smaller, on Gaussian data."""
    errors = []
    for count in (50, 200):
        schedule, places = path(kind, count, solver)
        wanted = exact(schedule, places[0], places[-1].t)
        errors.append(float((places[-1].x - wanted).abs().max()))
    assert errors[1] < errors[0] / 4 ** (order - 0.4)


def test_heun_step_is_that_of_the_paper() -> None:
    """With alpha = 1: d = (x - D) / t, and the mean of both slopes (CM, algorithm 2)."""
    schedule, grid = setting_of(EDM)
    known = Known(schedule)
    x, t, s = torch.tensor([[2.0, -7.0, 0.3]], dtype=torch.float64), grid[5], grid[6]
    slope = (x - known(x, t).x0) / t
    euler = x + (s - t) * slope
    second = (euler - known(euler, s).x0) / s
    here = Place(x, t)
    made = ode_step(network(known), here, s, schedule)
    torch.testing.assert_close(made.x, x + (s - t) * (slope + second) / 2, rtol=1e-12, atol=1e-12)
    made = ode_step(network(known), here, s, schedule, solver="euler")
    torch.testing.assert_close(made.x, euler, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_residuals_along_the_path_telescope(kind: type[NoiseSchedule], solver: str) -> None:
    """Whatever the student, sum of f(x_(n+1)) - f(x_n) over the path is f(x_T) - x_(t_min)."""
    schedule, places = path(kind, 18, solver)
    function, student = ConsistencyFunction(schedule), Known(schedule, std=0.2, mean=-1.0)
    values = [function(student(place.x, place.t), place.t) for place in places]
    residuals = [after - before for after, before in itertools.pairwise(values)]
    total = torch.stack(residuals).sum(0)
    torch.testing.assert_close(total, values[0] - places[-1].x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_residuals_of_the_true_function_vanish_with_the_grid(kind: type[NoiseSchedule]) -> None:
    """Then f(x_T) is the end of the solver's path up to its error: the bound of CM, theorem 1."""
    sums = []
    for count in (50, 200):
        schedule, places = path(kind, count, "heun")
        values = [exact(schedule, place, places[-1].t) for place in places]
        pairs = itertools.pairwise(values)
        sums.append(sum(float((a - b).abs().max()) for a, b in pairs))
    assert sums[1] < sums[0] / 4**1.6


@pytest.mark.parametrize("kind", SCHEDULES)
def test_step_of_consistency_training_is_the_euler_step_of_the_true_sample(
    kind: type[NoiseSchedule],
) -> None:
    """With the posterior mean in place of x0 it is the Euler step of the exact denoiser."""
    schedule, grid = setting_of(kind)
    known = Known(schedule)
    x, t, s = torch.tensor([[2.0, -7.0, 0.3]], dtype=torch.float64), grid[5], grid[6]
    made = known(x, t)
    noised = Noised(x, made.x0, eps=made.eps, t=t, alpha=made.alpha, sigma=made.sigma)
    wanted = ode_step(network(known), Place(x, t), s, schedule, solver="euler")
    torch.testing.assert_close(_true_step(noised, s, schedule), wanted.x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("follows", [True, False])
def test_step_from_a_moved_point_uses_the_noise_of_that_point(follows: bool) -> None:
    """Whether or not the view's target follows delta, x0 stays the clean sample."""
    schedule, grid = setting_of(VPLinear)
    t, s = grid[5], grid[6]
    x0, eps = torch.full((1, 3), 0.4).double(), torch.full((1, 3), -1.3).double()
    delta = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    alpha, sigma = expand(schedule.alpha(t), x0), expand(schedule.sigma(t), x0)
    told = eps + delta / sigma if follows else eps
    moved = Noised(
        alpha * x0 + sigma * eps + delta, x0, eps=told, t=t, alpha=alpha, sigma=sigma, delta=delta
    )
    found = _true_step(moved, s, schedule)
    wanted = schedule.alpha(s) * x0 + schedule.sigma(s) * (eps + delta / sigma)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
