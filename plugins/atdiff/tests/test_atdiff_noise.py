"""Noise in the path of sampling, where what it does to the samples is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_atdiff.metrics_noise import DisturbedSampler, NoiseRobustness
from torch import Tensor

from advdiff_core import RecipeError, Samples, SeedDraws
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Heun

sys.path.insert(0, str(Path(__file__).parent))
from helpers_atdiff_paths import SCHEDULE, Journey, Scaled, Spread, build, component_of, spec_of

STD, STEPS = 0.5, 8


def sampler(inner: Any = DDIM, **keys: Any) -> Any:
    """A sampler of a few steps."""
    return component_of(spec_of("sampler", inner, **{"steps": STEPS, **keys}))


def disturbed(level: float, place: float | None = None, inner: Any = DDIM) -> DisturbedSampler:
    """That one with noise."""
    return DisturbedSampler(sampler(inner), SCHEDULE, build(), level=level, place=place)


def run(made: Any, seeds: list[int], std: float = STD, **how: Any) -> Samples:
    """Float64 samples of some seeds, of Gaussian data."""
    x = SeedDraws(seeds, stream="start").normal((len(seeds), 16)).double()
    return made.sample(Scaled(std), x, SeedDraws(seeds, stream="steps"), **how)


@pytest.mark.parametrize("inner", [DDIM, DDPM, DPMpp2M, Heun])
def test_without_noise_samples_are_the_samplers_own_bit_for_bit(inner: Any) -> None:
    """At level 0; the sampler's own noise and count of evaluations stay what they are."""
    wanted, found = run(sampler(inner), [3, 4]), run(disturbed(0.0, inner=inner), [3, 4])
    assert torch.equal(found.x0, wanted.x0)
    moved = run(disturbed(0.1, inner=inner), [3, 4])
    assert not torch.equal(moved.x0, wanted.x0)
    assert moved.nfe == found.nfe == wanted.nfe


def variances(level: float, chosen: range) -> tuple[float, float]:
    """Variance of DDIM's samples of Gaussian data about 0: without noise, and with it.

    Every step is linear, `x_next = (a + b k) x` with eps_hat = k x, so variances are multiplied.
    """
    made = sampler()
    grid = made.grid()
    alpha, sigma = SCHEDULE.alpha(grid), SCHEDULE.sigma(grid)
    a, b = made.linear_step(grid[:-1], grid[1:])
    factor = a + b * (sigma / (alpha.square() * STD**2 + sigma.square()))[:-1]
    plain = noisy = 1.0
    for index in range(STEPS):
        noisy += (level * float(sigma[index])) ** 2 if index in chosen else 0.0
        plain, noisy = (value * float(factor[index]) ** 2 for value in (plain, noisy))
    return plain, noisy


@pytest.mark.parametrize(
    ("place", "chosen"), [(None, range(STEPS)), (0.0, range(1)), (0.5, range(4, 5))]
)
def test_noise_widens_gaussian_samples_by_the_known_amount(
    place: float | None, chosen: range
) -> None:
    """The variance added at a step goes through the linear steps after it, and none before."""
    seeds = list(range(2000))
    for level, value in zip((0.0, 0.5), variances(0.5, chosen), strict=True):
        found = run(disturbed(level, place), seeds).x0
        # 32,000 numbers: the standard error of their variance is 0.8 %.
        assert float(found.square().mean()) == pytest.approx(value, rel=0.03)


def test_data_of_a_single_point_bear_any_noise() -> None:
    """A perfectly robust denoiser: x0_hat stays where it is wherever x_t is."""
    found = run(disturbed(3.0), [0, 1], std=0.0)
    torch.testing.assert_close(found.x0, torch.zeros(2, 16).double(), atol=1e-9, rtol=0)


def states(made: Any, seeds: list[int], **how: Any) -> list[Tensor]:
    """States after each step, as a callback sees them."""
    seen: list[Tensor] = []
    run(made, seeds, callback=lambda i, x, p: seen.append(x.clone()), **how)
    return seen


@pytest.mark.parametrize("inner", [DDIM, DDPM])
def test_noise_belongs_to_seed_and_step(inner: Any) -> None:
    """In any batch, in proportion to the level, before the chosen step and not after the last.

    With a sampler that draws noise of its own, too: were its draws others, nothing would be in
    proportion.
    """
    plain, small, large = (states(disturbed(c, 0.5, inner), [5, 6, 7]) for c in (0.0, 0.1, 0.2))
    for index in range(3):
        assert torch.equal(small[index], plain[index])
    for index in range(3, STEPS):
        torch.testing.assert_close(large[index] - plain[index], 2 * (small[index] - plain[index]))
    assert float((small[3] - plain[3]).abs().min()) > 0
    alone = states(disturbed(0.1, inner=inner), [6])
    torch.testing.assert_close(alone[-1], states(disturbed(0.1, inner=inner), [5, 6, 7])[-1][1:2])


def test_a_callback_may_still_move_the_state_and_a_grid_be_given() -> None:
    """What it returns is gone on with; times that are given are those that scale the noise."""
    grid = sampler().grid()[2:]
    found = run(disturbed(0.1), [1], grid=grid, callback=lambda i, x, p: torch.zeros_like(x))
    assert torch.equal(found.x0, torch.zeros(1, 16).double())
    assert found.nfe == STEPS - 2
    assert torch.equal(disturbed(0.1).grid(), sampler().grid())


def metric(**keys: Any) -> NoiseRobustness:
    """The metric with a judge."""
    judge = spec_of("metric", Spread, "judge", needs=keys.pop("needs", True))
    settings: Any = NoiseRobustness.Settings
    return NoiseRobustness(settings(metric=judge, **keys), build(component_of))


def journey(folder: Path) -> Journey:
    """Eight seeds and six steps."""
    return Journey(folder, Scaled(STD), torch.zeros(4, 16), count=8, steps=6)


def test_the_curve_begins_at_the_plain_samples(tmp_path: Path) -> None:
    """Numbers by level and place; the first number by default; a table beside the picture."""
    evaluation = journey(tmp_path)
    made = metric(levels=(0.1, 0.4), places=(0.5,))
    found = made.compute(evaluation)
    plain = evaluation.generate(evaluation.sampler()).x0
    assert found["noise_spread_plain"] == float(plain.double().square().mean().sqrt())
    assert list(found)[1:] == [
        "noise_spread_every_0.1", "noise_spread_every_0.4",
        "noise_spread_at0.5_0.1", "noise_spread_at0.5_0.4",
    ]  # fmt: skip
    assert found["noise_spread_every_0.4"] > found["noise_spread_at0.5_0.4"]
    rows = (tmp_path / "noise-robustness-judge.csv").read_text().splitlines()
    assert rows[0] == "curve,noise / sigma(t),value"
    assert rows[1] == f'"spread, every",0.0,{found["noise_spread_plain"]}'
    assert len(rows) == 1 + 2 * 3
    assert (tmp_path / "noise-robustness-judge.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "noise-robustness-judge").exists()
    assert made.protocol()["metric"] == {"use": "judge", "what": "deviation"}


def test_sampler_steps_numbers_and_seeds_can_be_chosen(tmp_path: Path) -> None:
    """Heun with three steps, the other number, two seeds, single places alone."""
    keys = {"sampler": spec_of("sampler", Heun, "heun"), "steps": 3, "num": 2, "every": False}
    made = metric(**keys, numbers=("count",), levels=(0.1,), places=(0.0, 0.9))
    found = made.compute(journey(tmp_path))
    names = ("noise_count_plain", "noise_count_at0_0.1", "noise_count_at0.9_0.1")
    assert found == dict.fromkeys(names, 2.0)


def test_a_share_of_the_path_is_the_step_that_it_says() -> None:
    """0.29 of 100 steps is step 29, although 0.29 * 100 falls short of it in floating point."""
    assert disturbed(1.0, 0.29)._chosen(100) == range(29, 30)
    assert disturbed(1.0, 0.999)._chosen(8) == range(7, 8)
    assert disturbed(1.0)._chosen(8) == range(8)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"levels": ()}, r"levels: found \[\], wanted one or more, each once"),
        ({"levels": (0.1, 0.1)}, r"levels: found \[0.1, 0.1\], wanted one or more, each once"),
        ({"every": False}, "places: found none, and every = false, wanted a curve"),
        ({"places": (0.5, 0.5)}, r"places: found \[0.5, 0.5\], wanted each once"),
    ],
)
def test_settings_without_a_curve_are_refused(keys: dict[str, Any], words: str) -> None:
    """Told by the settings."""
    with pytest.raises(ValueError, match=words):
        metric(**keys)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    """No schedule, a judge of networks alone, a number that it does not have."""
    judge = spec_of("metric", Spread, "judge")
    settings: Any = NoiseRobustness.Settings
    with pytest.raises(RecipeError, match="needs a noise schedule, the recipe has none"):
        NoiseRobustness(settings(metric=judge), build(component_of, schedule=None))
    with pytest.raises(RecipeError, match="'judge' looks at no samples"):
        metric(needs=False)
    with pytest.raises(RecipeError, match="there is no number 'sharp'; there are spread, count"):
        metric(numbers=("sharp",)).compute(journey(tmp_path))
