"""Metrics of subspaces, paths and equivariance, where the answers are known."""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advdiff_robustadv.metrics_equivariance import EquivarianceError
from advdiff_robustadv.metrics_smoothness import Smoothness, Walk
from advdiff_robustadv.metrics_subspace import SubspaceDistance, psnr, recovery
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from advdiff_core import ModelInfo, RecipeError, SeedDraws, Subspace
from advdiff_core.samplers import Heun

sys.path.insert(0, str(Path(__file__).parent))
from helpers_robustadv_paths import IMAGES, POINTS, SCHEDULE, Linear, World, build, spec_of

FLAT = Subspace(origin=torch.tensor([0.0, 0.0, 1.0]).double(), basis=torch.eye(3).double()[:2])


def points(count: int = 200, seed: int = 0) -> Tensor:
    """Points of the plane z = 1, wider along x than along y."""
    flat = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cat([flat * torch.tensor([2.0, 1.0]), torch.ones(count, 1)], dim=1)


def made(component: Any, info: Any = POINTS, make: Any = None, models: Any = None, **keys: Any):
    """A metric with these keys."""
    return component(component.Settings(**keys), build(info, make, models=models or {}))


def plane_world(folder: Path, samples: Tensor) -> World:
    """Samples judged against points of the plane."""
    info = evolve(POINTS, subspace=FLAT)
    return World(folder, Linear(), points(), info).with_samples(samples)


def test_subspace_measures_distance_and_psnr(tmp_path: Path) -> None:
    """Half the points 0.2 above: mean distance 0.1; PSNR by its formula, 120 dB where exact."""
    samples = points()
    samples[::2, 2] += 0.2
    world = plane_world(tmp_path, samples)
    found = made(SubspaceDistance, world.info).compute(world)
    peak = float(points().max() - points().min())
    high = 10 * math.log10(peak**2 / (0.2**2 / 3))
    assert found["subspace_distance"] == pytest.approx(0.1, rel=1e-5)
    assert found["subspace_psnr"] == pytest.approx((high + 120) / 2, rel=1e-5)
    assert found["subspace_psnr_clean"] == pytest.approx(120)
    assert found["subspace_distance_clean"] == pytest.approx(0, abs=1e-9)
    assert world.notes == ["2 dimensions, 100 % of the variance"]


@given(angle=st.floats(0, math.pi / 2), scale=st.floats(0.1, 3))
def test_recovery_of_a_turned_plane_is_known(angle: float, scale: float) -> None:
    """Turned about x, the wide axis is recovered and cos^2 of the other: (4 + cos^2) / 5."""
    clean = torch.cat([torch.eye(3)[:2], -torch.eye(3)[:2]]).double() * torch.tensor([2.0, 1.0, 0])
    turn = torch.eye(3).double()
    turn[1:, 1:] = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    known = Subspace(origin=torch.zeros(3).double(), basis=torch.eye(3).double()[:2])
    found = recovery(scale * clean @ turn, clean, known)
    assert found["subspace_recovery"] == pytest.approx((4 + math.cos(angle) ** 2) / 5, abs=1e-6)
    assert found["subspace_angle"] == pytest.approx(math.degrees(angle), abs=1e-3)
    inside = scale * math.sqrt((4 + math.cos(angle) ** 2) / 5)
    assert found["subspace_std_ratio"] == pytest.approx(inside, rel=1e-6)


def test_a_subspace_is_fitted_where_none_is_known(tmp_path: Path) -> None:
    """Two directions of the clean points are the plane; few samples are noted."""
    world = World(tmp_path, Linear(), points()).with_samples(points(2))
    metric = made(SubspaceDistance, components=2)
    found = metric.compute(world)
    assert found["subspace_distance"] == pytest.approx(0, abs=1e-6)
    assert found["subspace_angle"] == 90
    assert "2 samples cannot span 2 dimensions" in world.notes
    assert metric.protocol()["subspace"] == "2 principal directions of the clean samples"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "the dataset knows no subspace that its samples lie in"),
        ({"components": 4}, "4 dimensions of 3 are asked for"),
    ],
)
def test_subspace_refuses_what_it_cannot_measure(keys: dict[str, int], words: str) -> None:
    """R10 at the key, before anything is trained."""
    with pytest.raises(RecipeError, match=words) as caught:
        made(SubspaceDistance, **keys)
    assert caught.value.faults[0].key == "evaluate.metrics[0].components"


def test_psnr_is_that_of_its_formula() -> None:
    """20 dB for a tenth of the peak; the floor is 120 dB."""
    found = psnr(torch.tensor([0.04, 0.0]).double(), peak=2.0)
    torch.testing.assert_close(found, torch.tensor([20.0, 120.0]).double())


def test_the_path_to_a_single_point_is_straight(tmp_path: Path) -> None:
    """The predicted noise never changes: rate, travel and turning are 0."""
    world = World(tmp_path, Linear(0.0), points())
    found = made(Smoothness).compute(world)
    for name in ("lipschitz", "travel", "turning"):
        assert found[f"smoothness_{name}"] == pytest.approx(0, abs=1e-4)


def test_the_path_of_gaussian_data_has_the_known_travel(tmp_path: Path) -> None:
    """Towards N(0, S^2) eps_hat = z s / (S^2 + s^2), on a ray: its way is the difference of ends.

    Fine steps: z = z_T sqrt((S^2 + s^2) / (S^2 + s_T^2)), which turns nowhere; x0_hat goes straight
    from 0 outwards; the largest rate |d eps / d log s| follows by differentiation.
    """
    world = World(tmp_path, Linear(0.5, centre=0.0), points())
    found = made(Smoothness, sampler=spec_of("sampler", Heun), steps=400, num=1,
                 make=lambda s: s.component(s.settings, build())).compute(world)  # fmt: skip
    log_s = np.linspace(math.log(0.01), math.log(157.0), 200_001)
    s = np.exp(log_s)
    eps = s / np.sqrt(0.25 + s**2)
    grid = world.sampler(400).grid()[[0, -2]]
    ends = (SCHEDULE.sigma(grid) / SCHEDULE.alpha(grid)).numpy()
    travel = np.ptp(ends / np.sqrt(0.25 + ends**2))
    noise = SeedDraws([0], stream="start").normal((1, 3)).double().square().mean().sqrt()
    size = float(noise) / float(SCHEDULE.sigma(grid[:1])) * ends[0] / math.sqrt(0.25 + ends[0] ** 2)
    assert found["smoothness_travel"] == pytest.approx(size * travel, rel=0.02)
    assert found["smoothness_lipschitz"] == pytest.approx(
        size * np.gradient(eps, log_s).max(), rel=0.05
    )
    assert found["smoothness_turning"] == pytest.approx(0, abs=1e-3)
    assert found["smoothness_detour"] == pytest.approx(1, abs=1e-6)


def test_smoothness_writes_its_profile_and_walks_batch_by_batch(tmp_path: Path) -> None:
    """Nine rates for ten steps; the numbers are of every seed, whatever the batches."""
    world = World(tmp_path, Linear(torch.tensor([1.0, 0.5, 0.1])), points())
    found = made(Smoothness).compute(world)
    rows = (tmp_path / "smoothness.csv").read_text().splitlines()
    assert rows[0] == "curve,log10 s,value"
    assert len(rows) == 1 + 9
    walks = [Walk(), Walk()]
    for walk, num in zip(walks, (6, 4), strict=True):
        world.generate(world.sampler(), num=num, callback=walk)
    assert [len(walk.numbers()["travel"]) for walk in walks] == [6, 4]
    torch.testing.assert_close(walks[0].numbers()["turning"][:4], walks[1].numbers()["turning"])
    assert found["smoothness_turning"] == pytest.approx(float(walks[0].numbers()["turning"].mean()))
    assert found["smoothness_turning"] > 1


def errors(
    folder: Path, denoise: Any, info: Any = POINTS, clean: Tensor | None = None, **keys: Any
):
    """Equivariance errors of a known denoiser."""
    world = World(folder, denoise, points(20) if clean is None else clean, info)
    return made(EquivarianceError, info, **keys).compute(world)


def test_an_equivariant_denoiser_has_no_error_and_an_invariant_one_has_error_one(
    tmp_path: Path,
) -> None:
    """eps_hat = (x - alpha c) / sigma follows every move; slope 0 follows none."""
    follows, stays = errors(tmp_path, Linear(0.0)), errors(tmp_path, Linear(0.0, slope=0.0))
    for name, value in follows.items():
        assert value == pytest.approx(0, abs=1e-3), name
        assert stays[name] == pytest.approx(1, abs=1e-5)


@given(std=st.floats(0.1, 2.0))
def test_the_error_for_gaussian_data_is_the_shrinkage(std: float) -> None:
    """eps_hat = k (x - alpha c): |k sigma - 1| = a^2 S^2 / (a^2 S^2 + sigma^2) at any delta."""
    with tempfile.TemporaryDirectory() as folder:
        found = errors(Path(folder), Linear(std), levels=(0.2, 0.6), steps=1, num=3)
    for level in (0.2, 0.6):
        t = torch.tensor(SCHEDULE.t_min + level * (SCHEDULE.t_max - SCHEDULE.t_min)).double()
        signal, noise = float(SCHEDULE.alpha(t)) ** 2 * std**2, float(SCHEDULE.sigma(t)) ** 2
        wanted = signal / (signal + noise)
        assert found[f"equivariance_error_random_t{level:g}"] == pytest.approx(wanted, rel=1e-3)


def test_the_attack_finds_the_direction_that_shrinks_most(tmp_path: Path) -> None:
    """Deviations 2, 0.1 and 0.1: the worst move is along the first axis, chance is in between."""
    denoise = Linear(torch.tensor([2.0, 0.1, 0.1]))
    keys = {"levels": (0.3,), "norm": "l2", "steps": 30}
    found = errors(tmp_path, denoise, **keys)
    t = torch.tensor(SCHEDULE.t_min + 0.3 * (SCHEDULE.t_max - SCHEDULE.t_min)).double()
    signal, noise = 4 * float(SCHEDULE.alpha(t)) ** 2, float(SCHEDULE.sigma(t)) ** 2
    assert found["equivariance_error_attacked_q100"] == pytest.approx(
        signal / (signal + noise), rel=0.02
    )
    assert found["equivariance_error_random"] < 0.9 * found["equivariance_error_attacked"]
    witness = load_file(tmp_path / "equivariance-witness.safetensors")
    direction = witness["delta"][0] / witness["delta"][0].norm()
    assert abs(float(direction[0])) > 0.98


def test_the_witness_proves_the_worst_error(tmp_path: Path) -> None:
    """What is stored repeats the number: predictions, delta, level, sample; images are shown."""
    clean = points(16).repeat(1, 6)[:, :16].reshape(-1, 1, 4, 4).clamp(-1, 1)
    denoise = Linear(torch.linspace(0.1, 1.0, 16).reshape(1, 4, 4))
    found = errors(tmp_path, denoise, IMAGES, clean, levels=(0.2, 0.7), steps=5)
    path = tmp_path / "equivariance-witness.safetensors"
    kept = load_file(path)
    shift = kept["delta"] / kept["sigma"]
    residual = kept["eps_hat_moved"] - kept["eps_hat"] - shift
    error = float(residual.norm() / shift.norm())
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    assert error == pytest.approx(found["equivariance_error_attacked_q100"], rel=1e-4)
    assert float(told["error"]) == pytest.approx(error, rel=1e-4)
    assert float(kept["delta"].abs().max()) <= float(told["radius"]) * (1 + 1e-6)
    assert torch.equal(kept["x0"][0], clean[int(told["sample"])])
    moved = denoise(kept["x_t"] + kept["delta"], kept["t"]).eps
    torch.testing.assert_close(moved, kept["eps_hat_moved"])
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    rows = (tmp_path / "equivariance-error.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2


def test_errors_know_neither_batch_nor_order(tmp_path: Path) -> None:
    """Draws are keyed by content: in parts of 3, and turned round, the same numbers."""
    denoise, clean = Linear(torch.tensor([2.0, 0.5, 0.1])), points(10)
    wanted = errors(tmp_path, denoise, clean=clean, steps=2)
    for other in (
        errors(tmp_path, denoise, clean=clean, steps=2, batch=3),
        errors(tmp_path, denoise, clean=clean.flip(0), steps=2),
    ):
        assert other == pytest.approx(wanted, rel=1e-5)
    assert errors(tmp_path, denoise, clean=clean, steps=2, seed=1) != wanted


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"radius": 0.0}, "radius: 0 moves nothing, so nothing can be measured"),
        ({"levels": ()}, r"levels: found \[\], wanted one or more, each once"),
    ],
)
def test_equivariance_error_refuses_settings_without_a_number(
    keys: dict[str, Any], words: str
) -> None:
    """Told by the settings."""
    with pytest.raises(ValueError, match=words):
        made(EquivarianceError, **keys)


def test_equivariance_error_refuses_roles_that_are_no_denoisers() -> None:
    """A classifier, and a role that is not there."""
    models = {"judge": ModelInfo(kind="backbone", frozen=True)}
    for role in ("judge", "nobody"):
        with pytest.raises(RecipeError, match=f"'{role}' is no denoiser of this recipe"):
            made(EquivarianceError, models=models, role=role)
    told = evolve(build(), schedule=None)
    with pytest.raises(RecipeError, match="a denoiser needs a noise schedule"):
        EquivarianceError(EquivarianceError.Settings(), told)
