"""The grid of consistency models against the formulas of its papers, read independently."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from advdiff_atdiff.consistency_grid import ConsistencyGrid, doubling_levels, root_levels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, RecipeError
from advdiff_core.schedules import EDM, VPLinear

K = 800_000


def grid_of(images: int = K, *, vp: bool = False, **keys: Any) -> ConsistencyGrid:
    """The sampler on EDM's schedule, or on the linear VP one."""
    kind = VPLinear if vp else EDM
    schedule = kind(kind.Settings(), Build())
    build = Build(path="schedule.density.sampler", schedule=schedule, images=images)
    return ConsistencyGrid(ConsistencyGrid.Settings(**keys), build)


def uniform(count: int) -> Tensor:
    """One number in the middle of each of `count` equal parts of [0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_root_curriculum_has_the_numbers_of_the_paper() -> None:
    """Worked by hand: N(K / 4) = ceil(sqrt(22797 / 4 + 4) - 1) + 1 = 76, and both ends."""
    # s0 = 2, s1 = 150: (s1 + 1)^2 - s0^2 = 22797; a quarter and 4 is 5703.25, whose root is 75.52.
    assert root_levels(0.0, 2, 150) == 2
    assert root_levels(0.25, 2, 150) == 76
    assert root_levels(0.5, 2, 150) == 107
    assert root_levels(1.0, 2, 150) == 151


def test_doubling_curriculum_has_the_numbers_of_the_paper() -> None:
    """Eight stages of K / 8 images: 10, 20, ..., 1280 intervals."""
    starts = [doubling_levels(n * K // 8, K, 10, 1280) for n in range(8)]
    assert starts == [10 * 2**n + 1 for n in range(8)]
    assert doubling_levels(K // 8 - 1, K, 10, 1280) == 11
    assert doubling_levels(K, K, 10, 1280) == 1281


def test_target_network_decay_of_the_paper_follows_from_the_levels() -> None:
    """mu(k) = exp(s0 log mu0 / N(k)) is what `follow` makes of rate = mu0 and levels = s0."""
    from advdiff_core.engine.followers import Follower

    grid = grid_of(s0=2, s1=150)
    module = torch.nn.Linear(1, 1)
    follower = Follower(
        name="target", leader="student", module=module, source=module, rate=0.9, levels=2
    )
    for nimg in (0, K // 4, K - 1):
        wanted = math.exp(2 * math.log(0.9) / grid.levels(nimg))
        assert follower.decay(grid.levels(nimg)) == pytest.approx(wanted, rel=1e-12)
    assert follower.decay(grid.levels(0)) == pytest.approx(0.9)


def test_levels_are_counted_over_the_run_or_over_what_is_said() -> None:
    """`over` replaces the length of the run; beyond its end nothing changes."""
    run, said = grid_of(), grid_of(over=K // 2)
    assert [run.levels(n) for n in (0, K // 2, K)] == [2, 107, 151]
    assert [said.levels(n) for n in (0, K // 4, K // 2, K)] == [2, 107, 151, 151]
    assert grid_of(curriculum="constant", levels=7).levels(123) == 7
    assert grid_of(images=0).levels(0) == 151


def test_grid_is_that_of_the_paper() -> None:
    """t_i = (tmin^(1/7) + (i - 1) / (N - 1) (tmax^(1/7) - tmin^(1/7)))^7, ends exact."""
    low, high, count = 0.002, 80.0, 18
    grid = grid_of().grid(count, torch.device("cpu"))
    roots = [low ** (1 / 7), high ** (1 / 7)]
    wanted = [(roots[0] + i / (count - 1) * (roots[1] - roots[0])) ** 7 for i in range(count)]
    torch.testing.assert_close(grid, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (float(grid[0]), float(grid[-1])) == (low, high)


@given(count=st.integers(2, 300), vp=st.booleans(), law=st.sampled_from(["karras", "log-snr"]))
def test_before_finds_the_neighbour_of_every_drawn_time(count: int, vp: bool, law: str) -> None:
    """In float32, as a step has its times, t_n is the grid's time below t_(n+1)."""
    made = grid_of(vp=vp, curriculum="constant", levels=count, grid=law)
    grid = made.grid(count, torch.device("cpu"))
    later = made.draw(uniform(count - 1), 0).t
    assert torch.equal(later, grid[1:])
    found = made.before(later.float(), 0)
    assert found.dtype == torch.float32
    assert torch.equal(found, grid[:-1].float())


def test_uniform_law_draws_every_interval_equally_often() -> None:
    """As many strata as intervals times four: four of each."""
    made = grid_of(curriculum="constant", levels=6)
    assert set(Counter(made.draw(uniform(20), 0).t.tolist()).values()) == {4}


def test_log_normal_law_is_that_of_the_paper() -> None:
    """p(t_i) ~ erf((log t_(i+1) - m) / (s sqrt 2)) - erf((log t_i - m) / (s sqrt 2))."""
    made = grid_of(curriculum="constant", levels=11, index="log-normal")
    grid = made.grid(11, torch.device("cpu")).tolist()
    z = [math.erf((math.log(t) + 1.1) / (2.0 * math.sqrt(2))) for t in grid]
    mass = [b - a for a, b in itertools.pairwise(z)]
    wanted = [part / sum(mass) for part in mass]
    drawn = Counter(made.draw(uniform(200_000), 0).t.tolist())
    for place, share in enumerate(wanted):
        assert drawn[grid[place + 1]] / 200_000 == pytest.approx(share, abs=1e-5)


def test_later_times_are_never_the_smallest_and_none_is_past_the_end() -> None:
    """Also for the extreme numbers of [0, 1)."""
    for index in ("uniform", "log-normal"):
        made = grid_of(curriculum="constant", levels=5, index=index)
        u = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
        t = made.draw(u, 0).t
        grid = made.grid(5, torch.device("cpu"))
        assert t.tolist() == [float(grid[1]), float(grid[-1])]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"levels": 1}, "levels: 1 must be at least 2"),
        ({"s0": 1}, "s0: 1 must be at least 2"),
        ({"s0": 60, "s1": 50}, "s1: 50 must be at least s0 = 60"),
        ({"curriculum": "doubling", "s1": 5}, "s1: 5 must be at least s0 = 10"),
        ({"sigma_data": 0.0}, "sigma_data: 0.0 must be above 0"),
    ],
)
def test_a_grid_without_two_levels_is_refused(keys: dict[str, Any], wanted: str) -> None:
    """Each with the key and its bound."""
    with pytest.raises(ValueError, match=wanted):
        ConsistencyGrid.Settings(**keys)


def test_a_law_without_probability_is_refused() -> None:
    """A log-normal law far off all noise levels would divide by zero."""
    with pytest.raises(RecipeError, match="gives no interval of the schedule's noise levels"):
        grid_of(index="log-normal", mean=400.0)


def test_a_grid_without_a_schedule_is_refused() -> None:
    """A recipe of classifiers has no noise levels."""
    with pytest.raises(RecipeError, match="a grid of noise levels needs a schedule"):
        ConsistencyGrid(ConsistencyGrid.Settings(), Build(path="schedule.density.sampler"))
