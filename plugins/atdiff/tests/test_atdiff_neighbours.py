"""The radius that is the distance between neighbouring noise levels."""

from __future__ import annotations

import pytest
import torch
from advdiff_atdiff.neighbours import Neighbours
from advdiff_atdiff.perturbations import Free
from torch import Tensor

from advdiff_core import Build, Noised, NoiseSchedule, SeedDraws
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.types import expand


def made(schedule: type[NoiseSchedule], **keys: float) -> NoiseSchedule:
    """A schedule."""
    return schedule(schedule.Settings(**keys), Build())


def test_fifty_cosine_steps_have_the_distances_of_the_released_code() -> None:
    """0.043 to 1.01, median 0.25, nine of ten above 0.1: `sqrt(2 - 2 sqrt(ab_t / ab_s))`."""
    schedule = made(VPCosine)
    index = torch.arange(0, 961, 20)
    s, t = (index + 1).double() / 1000, (index + 21).double() / 1000
    found = Neighbours(schedule, 50).rms(s)
    released = (2 - 2 * schedule.alpha(t) / schedule.alpha(s)).sqrt()
    torch.testing.assert_close(found, released, rtol=1e-9, atol=1e-12)
    low, high, median = found.min().item(), found.max().item(), found.median().item()
    assert (round(low, 3), round(high, 2), round(median, 2)) == (0.043, 1.01, 0.25)
    assert (found > 0.1).double().mean().item() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("schedule", [EDM, VE, Flow, VPLinear])
def test_it_is_the_distance_of_two_levels_of_one_sample(schedule: type[NoiseSchedule]) -> None:
    """Of unit variance, moved by the forward process from s to t; on any schedule."""
    noise = made(schedule)
    law = Neighbours(noise, 20)
    grid = law._grid(torch.device("cpu"))
    s, t = grid[4:5], grid[5:6]
    generator = torch.Generator().manual_seed(0)
    x0, first, second = torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    x_s = noise.alpha(s) * x0 + noise.sigma(s) * first
    ratio = noise.alpha(t) / noise.alpha(s)
    added = (noise.sigma(t).square() - (ratio * noise.sigma(s)).square()).sqrt()
    x_t = ratio * x_s + added * second
    expected = (x_t - x_s).square().mean().sqrt()
    assert law.rms(s).item() == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("schedule", [EDM, VE, Flow, VPLinear, VPCosine])
def test_it_is_finite_and_positive_at_every_time(schedule: type[NoiseSchedule]) -> None:
    """Above the last step it stays as wide as that step."""
    noise = made(schedule)
    law = Neighbours(noise, 50)
    t = noise.quantile(torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64))
    found = law.rms(t.float())
    assert found.isfinite().all()
    assert (found > 0).all()
    grid = law._grid(torch.device("cpu"))
    assert law.rms(grid[-1:]).item() == law.rms(grid[-2:-1]).item()


def budget_radius(t: Tensor, **keys: object) -> Tensor:
    """Radius of the perturbation `free` at times t [B] on four pixels."""
    schedule = made(VPCosine)
    build = Build(path="views.adv.perturb", schedule=schedule)
    perturbation = Free(Free.Settings(**keys), build)
    x = torch.zeros(len(t), 4, dtype=t.dtype)
    alpha, sigma = expand(schedule.alpha(t), x), expand(schedule.sigma(t), x)
    noised = Noised(x, x, eps=x, t=t, alpha=alpha, sigma=sigma)
    radius = perturbation.budget(noised, SeedDraws(range(len(t)))).radius
    assert isinstance(radius, Tensor)
    return radius


def test_rho_is_the_most_that_it_allows() -> None:
    """`min(distance, rho)`; at 50 cosine steps rho = 0.1 binds at nine times of ten."""
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    free = budget_radius(t, radius="neighbours", rho=100.0, norm="linf")
    bound = budget_radius(t, radius="neighbours", rho=0.1, norm="linf")
    assert torch.equal(bound, free.clamp(max=0.1))
    assert torch.equal(budget_radius(t, rho=0.1, norm="linf"), torch.full_like(bound, 0.1))
    l2 = budget_radius(t, radius="neighbours", rho=0.1)
    torch.testing.assert_close(l2, 2 * bound)
    coarse = budget_radius(t, radius="neighbours", rho=100.0, norm="linf", steps_apart=10)
    assert (coarse > free).all()
