"""Where rollouts start and stop, and which of their steps are trained."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from advdiff_adt.stretches import Stretch, StretchLaw
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats


def drawn(law: StretchLaw, steps: int, count: int, nimg: int = 0) -> list[Stretch]:
    """Many draws, from one generator."""
    generator = torch.Generator().manual_seed(3)
    return [law.draw(steps, nimg, generator) for _ in range(count)]


LAWS = st.builds(
    StretchLaw,
    rule=st.sampled_from(["adt", "drtune", "full", "last-k", "none"]),
    start=st.sampled_from(["uniform", "curriculum"]),
    curriculum=st.just(1000),
    count=st.integers(1, 60),
    choice=st.sampled_from(["random", "spaced"]),
    truncation=st.sampled_from(["fixed", "random"]),
    early_stop=st.floats(0.0, 0.99),
)


@given(law=LAWS, steps=st.integers(1, 50), nimg=st.integers(0, 2000), seed=st.integers(0, 10**6))
def test_a_stretch_lies_on_the_path(law: StretchLaw, steps: int, nimg: int, seed: int) -> None:
    """It runs a step or more, trains K of those, and its times fall to the end of the path."""
    found = law.draw(steps, nimg, torch.Generator().manual_seed(seed))
    assert 0 <= found.first <= found.last < steps
    grid = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)
    times = found.times(grid)
    assert len(times) == found.count + 1
    assert bool((times.diff() < 0).all())
    assert float(times[-1]) == 0.0
    assert sorted(set(found.trained)) == list(found.trained)
    assert set(found.trained) <= set(range(found.count))
    wanted = {"full": found.count, "none": 1}.get(law.rule, min(law.count, found.count))
    random = law.rule == "last-k" and law.truncation == "random"
    assert 1 <= len(found.trained) <= wanted
    assert random or len(found.trained) == wanted


def chi_square(found: Counter[Any], outcomes: int) -> float:
    """P-value of counts that should be uniform over so many outcomes."""
    assert len(found) == outcomes
    return float(stats.chisquare(list(found.values())).pvalue)


def test_uniform_starts_are_uniform_on_the_discrete_path() -> None:
    """Each step of the path begins a rollout as often as any other."""
    found = Counter(one.first for one in drawn(StretchLaw(rule="adt"), 10, 3000))
    assert chi_square(found, 10) > 1e-3


def test_random_steps_are_uniform_without_replacement() -> None:
    """Every pair out of five steps is as likely as any other."""
    law = StretchLaw(rule="adt", start="fixed", count=2)
    assert chi_square(Counter(one.trained for one in drawn(law, 5, 3000)), 10) > 1e-3


def test_spaced_steps_are_evenly_spaced_with_a_random_offset() -> None:
    """Two of ten are five apart, with each offset as often as any other."""
    law = StretchLaw(rule="drtune", start="fixed", count=2, choice="spaced")
    found = Counter(one.trained for one in drawn(law, 10, 3000))
    assert all(second - first == 5 for first, second in found)
    assert chi_square(found, 5) > 1e-3


def test_last_k_trains_the_end_of_the_path() -> None:
    """K last steps, or a number of last steps that is uniform up to K."""
    law = StretchLaw(rule="last-k", start="fixed", count=3)
    assert {one.trained for one in drawn(law, 10, 20)} == {(7, 8, 9)}
    law = StretchLaw(rule="last-k", start="fixed", count=3, truncation="random")
    found = Counter(one.trained for one in drawn(law, 10, 3000))
    assert set(found) == {(9,), (8, 9), (7, 8, 9)}
    assert chi_square(found, 3) > 1e-3


def test_early_stops_are_uniform_among_the_last_steps() -> None:
    """With a share of 0.4, ten steps end with the seventh to the tenth; the rest is one step."""
    law = StretchLaw(rule="drtune", start="fixed", early_stop=0.4)
    found = drawn(law, 10, 3000)
    assert chi_square(Counter(one.last for one in found), 4) > 1e-3
    grid = torch.linspace(1.0, 0.0, 11)
    assert {len(one.times(grid)) for one in found} == {8, 9, 10, 11}


def test_a_curriculum_grows_backwards_from_the_data() -> None:
    """At first the last step alone; at half its length the last half; at the end the whole path."""
    law = StretchLaw(rule="adt", start="curriculum", curriculum=1000)
    assert {one.first for one in drawn(law, 10, 100)} == {9}
    assert {one.first for one in drawn(law, 10, 200, nimg=500)} == {5, 6, 7, 8, 9}
    assert {one.first for one in drawn(law, 10, 300, nimg=5000)} == set(range(10))


@pytest.mark.parametrize("first", [0, 4, 9])
def test_fixed_starts_begin_where_they_are_told(first: int) -> None:
    """The same step each time."""
    assert {
        one.first for one in drawn(StretchLaw(rule="adt", start="fixed", first=first), 10, 9)
    } == {first}
