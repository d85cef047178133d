"""The distribution gap of Gaussian data, whose denoiser, paths and sampling error are known."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advdiff_atdiff.clouds import Cloud, directions_of, distance, quotient
from advdiff_atdiff.metrics_gap import DistributionGap
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from advdiff_core import RecipeError
from advdiff_core.samplers import DDPM, Euler

sys.path.insert(0, str(Path(__file__).parent))
from helpers_atdiff_paths import SCHEDULE, Journey, Scaled, build, component_of, spec_of

STD, WIDTH, COUNT, STEPS = 0.5, 32, 1200, 40
#: Three standard errors of the quotient of two deviations, of that many numbers each.
ERROR = 3 / math.sqrt(COUNT * WIDTH)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers of that shape, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def metric(**keys: Any) -> DistributionGap:
    """The metric with these keys."""
    settings: Any = DistributionGap.Settings
    return DistributionGap(settings(**{"projections": 32, **keys}), build(component_of))


def journey(folder: Path, factor: float = 1.0, steps: int = STEPS) -> Journey:
    """Gaussian data, and the exact denoiser with its noise multiplied by `factor`."""
    data = STD * normal(2 * COUNT, WIDTH)
    return Journey(folder, Scaled(STD, factor), data, count=COUNT, steps=steps)


@functools.cache
def overlap(count: int) -> float:
    """Mean product of the order statistics of two sets of `count` standard normal numbers.

    `sum_i m_i^2 / count` with the expected order statistics m_i, by quadrature: the probability of
    one has a beta density. The upper half mirrors the lower one.
    """
    z = np.linspace(-6, 6, 801)
    ranks = np.arange(1, count // 2 + 1)[:, None]
    weight = stats.beta.pdf(stats.norm.cdf(z), ranks, count + 1 - ranks) * stats.norm.pdf(z)
    means = (weight * z).sum(1) / weight.sum(1)
    return 2 * float((means**2).sum()) / count


def expected(a: np.ndarray, b: np.ndarray, count: int = COUNT) -> np.ndarray:
    """Root of the expected squared distance of `count` draws each of N(0, a^2) and N(0, b^2)."""
    return np.sqrt(a**2 + b**2 - 2 * a * b * overlap(count))


def deviations(evaluation: Journey, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Deviation of x_t in sampling, by DDIM's own linear steps, and in training [n + 1]."""
    sampler = evaluation.sampler()
    grid = sampler.grid()
    alpha, sigma = SCHEDULE.alpha(grid), SCHEDULE.sigma(grid)
    true = (alpha.square() * STD**2 + sigma.square()).sqrt()
    a, b = sampler.linear_step(grid[:-1], grid[1:])
    gain = factor * sigma / true.square()
    steps = a + b * gain[:-1]
    sampled = float(sigma[0]) * torch.cat([torch.ones(1).double(), steps.cumprod(0)])
    return sampled.numpy(), true.numpy()


def curve(folder: Path, name: str = "") -> dict[str, np.ndarray]:
    """Values of each curve that was written."""
    with (folder / f"distribution-gap{name}.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    return {
        key: np.array([float(row[2]) for row in group])
        for key, group in itertools.groupby(rows, key=lambda row: row[0])
    }


@pytest.mark.parametrize("factor", [1.0, 1.02])
def test_the_gap_of_gaussian_data_is_the_predicted_one(tmp_path: Path, factor: float) -> None:
    """Exact, the gap is the sampling error; 2 % more noise than there is makes the known gap.

    The predicted distance has both parts, the two deviations and the error of so many draws.
    """
    evaluation = journey(tmp_path, factor)
    found = metric().compute(evaluation)
    sampled, true = deviations(evaluation, factor)
    wanted = expected(sampled, true)
    np.testing.assert_allclose(curve(tmp_path)["sampling"], wanted, atol=ERROR, rtol=0.05)
    assert found["gap_sliced"] == pytest.approx(wanted.mean(), abs=ERROR)
    assert found["gap_sliced_worst"] == curve(tmp_path)["sampling"].max()
    assert found["gap_sliced_floor"] == pytest.approx(expected(true, true).mean(), rel=0.1)
    ratio = sampled / true
    assert found["gap_variance"] == pytest.approx((ratio**2).mean(), rel=2 * ERROR)
    assert found["gap_eps_norm"] == pytest.approx(ratio[:-1].mean(), rel=ERROR)
    assert found["gap_eps_spread"] == pytest.approx(ratio[:-1].mean(), rel=0.1)
    assert evaluation.notes == []


def test_a_scaled_prediction_is_told_from_an_exact_one(tmp_path: Path) -> None:
    """At the last times 2 % of eps_hat are 10 % of deviation: above the floor, and too narrow."""
    narrow, exact = (metric().compute(journey(tmp_path, factor)) for factor in (1.02, 1.0))
    assert narrow["gap_sliced"] > 1.15 * narrow["gap_sliced_floor"]
    assert exact["gap_sliced"] < 1.1 * exact["gap_sliced_floor"]
    assert narrow["gap_variance"] < 0.96 < 0.98 < exact["gap_variance"] < 1.02


def test_sizes_of_predictions_are_those_of_the_formula(tmp_path: Path) -> None:
    """`sigma |x_t| / sqrt(D) / (alpha^2 S^2 + sigma^2)`: a chi variable, mean and spread known."""
    evaluation = journey(tmp_path)
    metric().compute(evaluation)
    chi = stats.chi(WIDTH)
    sigma = SCHEDULE.sigma(evaluation.sampler().grid()).numpy()[:-1]
    true = deviations(evaluation, 1.0)[1]
    found = curve(tmp_path, "-eps")
    for side, deviation in zip(("sampling", "training"), deviations(evaluation, 1.0), strict=True):
        size = (sigma * deviation[:-1] / true[:-1] ** 2) / math.sqrt(WIDTH)
        np.testing.assert_allclose(found[f"mean, {side}"], size * chi.mean(), rtol=0.02)
        np.testing.assert_allclose(found[f"spread, {side}"], size * chi.std(), rtol=0.1)


def cloud(x: Tensor, directions: Tensor, batch: int = 5) -> Cloud:
    """A cloud of samples [N, D], in batches."""
    made = Cloud(directions)
    for part in x.split(batch):
        made.add(part)
    return made


@given(n=st.integers(1, 6), m=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_distance_is_that_of_optimal_transport(n: int, m: int, seed: int) -> None:
    """Every sample repeated to equal numbers, an assignment of least cost is no better or worse."""
    a, b = normal(n, 3, seed=seed), 2 * normal(m, 3, seed=seed + 100) + 1
    directions = directions_of(4, 3, seed)
    cost = 0.0
    for line in directions:
        u, v = (np.repeat((x.double() @ line).numpy(), k) for x, k in ((a, m), (b, n)))
        square = (u[:, None] - v[None]) ** 2
        cost += square[linear_sum_assignment(square)].mean() / len(directions)
        assert square[linear_sum_assignment(square)].mean() >= (
            stats.wasserstein_distance(u, v) ** 2 * (1 - 1e-9)
        )
    assert distance(cloud(a, directions), cloud(b, directions)) == pytest.approx(math.sqrt(cost))


@given(shift=st.floats(-1e4, 1e4), batch=st.integers(1, 7))
def test_the_variance_is_that_of_the_whole_set(shift: float, batch: int) -> None:
    """Mean over dimensions of the variance over samples, whatever the batches."""
    x = normal(20, 4).double() + shift
    found = cloud(x, directions_of(2, 4, 0), batch)
    assert found.variance == pytest.approx(float(x.var(0, correction=0).mean()), rel=1e-5)
    assert found.count == 20


def test_directions_have_length_one_and_are_uniform() -> None:
    """Their second moment is 1 / D in every axis, so that the distance has the data's units."""
    directions = directions_of(4000, 3, 1)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4000).double())
    moment = directions.T @ directions / 4000
    torch.testing.assert_close(moment, torch.eye(3).double() / 3, atol=0.02, rtol=0)
    assert not torch.equal(directions, directions_of(4000, 3, 2))


def test_a_quotient_is_finite() -> None:
    """1 for nothing over nothing."""
    assert [quotient(0.0, 0.0), quotient(1.0, 4.0)] == [1.0, 0.25]
    assert math.isfinite(quotient(1.0, 0.0))


def test_the_gap_knows_neither_batch_nor_order_of_the_data(tmp_path: Path) -> None:
    """Noise and sides belong to the content of a sample; another seed draws others."""
    data = STD * normal(30, 4)
    found = [
        metric(**keys).compute(Journey(tmp_path, Scaled(1.0), x, count=8))
        for x, keys in ((data, {}), (data, {"batch": 3}), (data.flip(0), {}), (data, {"seed": 1}))
    ]
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])
    assert found[3]["gap_sliced"] != pytest.approx(found[0]["gap_sliced"])


def test_too_few_data_are_noted_and_shared_out(tmp_path: Path) -> None:
    """Half of the data for either side."""
    evaluation = Journey(tmp_path, Scaled(1.0), normal(10, 4), count=8)
    found = metric().compute(evaluation)
    assert evaluation.notes == ["5 data on either side for 8 samples: the data set has no more"]
    assert all(math.isfinite(value) for value in found.values())


def test_training_is_asked_at_the_times_and_labels_that_it_has(tmp_path: Path) -> None:
    """Also where churn moves a step's time; a class-conditional network gets the data's classes."""
    denoise = Scaled(1.0)
    evaluation = Journey(tmp_path, denoise, normal(12, 4), count=6)
    evaluation.labels = torch.arange(12)
    sampler = spec_of("sampler", Euler, "euler", steps=4, churn=2.0)
    metric(sampler=sampler, num=4).compute(evaluation)
    times = np.array(denoise.times)
    # Four images a step, then four data a time.
    np.testing.assert_allclose(times[:16], times[16:], rtol=1e-4)
    grid = component_of(sampler).grid()[:4].numpy()
    assert (times[:16:4] > grid + 1e-4).any()
    told = evaluation.called_with[-1]
    assert told is not None
    assert len(told) == 4
    assert (tmp_path / "distribution-gap-euler.csv").exists()


def test_curves_have_a_point_for_every_time_of_the_grid(tmp_path: Path) -> None:
    """Ten steps and the end, where no network is asked; also for a stochastic sampler."""
    evaluation = Journey(tmp_path, Scaled(1.0), normal(12, 4), steps=10)
    made = metric(sampler=spec_of("sampler", DDPM, "ddpm"), steps=10)
    made.compute(evaluation)
    sizes = {name: len(curve(tmp_path, f"{name}-ddpm")) for name in ("", "-eps", "-variance")}
    assert sizes == {"": 2, "-eps": 4, "-variance": 1}
    assert len(curve(tmp_path, "-ddpm")["sampling"]) == 11
    assert len(curve(tmp_path, "-eps-ddpm")["mean, sampling"]) == 10
    assert (tmp_path / "distribution-gap-variance-ddpm.png").read_bytes()[:4] == b"\x89PNG"
    assert made.protocol()["steps"] == 10


def test_a_recipe_without_noise_has_no_gap() -> None:
    """R10, before anything is trained."""
    with pytest.raises(RecipeError, match="needs a noise schedule, the recipe has none") as caught:
        DistributionGap(DistributionGap.Settings(), build(schedule=None))
    assert caught.value.faults[0].key == "evaluate.metrics[0].use"
