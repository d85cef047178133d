"""Attacks on the path of sampling: identity, ball, seeds, counting, and what they are good for."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_robustadv.metrics_subspace import SubspaceDistance
from advdiff_robustadv.metrics_trajectory import TrajectoryAttack
from advdiff_robustadv.reach import ReachSettings, ascend, reach, uniform_start
from advdiff_robustadv.trajectory import Attacked, chosen_steps
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, Prediction, RecipeError, Samples, SeedDraws
from advdiff_core.interfaces.sampler import with_steps
from advdiff_core.samplers import DDIM, DDPM

sys.path.insert(0, str(Path(__file__).parent))
from helpers_robustadv_paths import SCHEDULE, Linear, World, build, spec_of

SEEDS = [5, 6, 7]


def attacked(inner: Any = DDIM, steps: int = 6, **keys: Any) -> Attacked:
    """A sampler under attack."""
    spec = spec_of("sampler", inner, steps=steps)
    told = build(make=lambda spec: spec.component(spec.settings, build()))
    settings: Any = Attacked.Settings
    return Attacked(settings(sampler=spec, **keys), told)


def run(sampler: Any, denoise: Any, seeds: list[int] = SEEDS, **how: Any) -> Samples:
    """Float64 samples of some seeds."""
    x = SeedDraws(seeds, stream="start").normal((len(seeds), 3)).double()
    return sampler.sample(denoise, x, SeedDraws(seeds, stream="steps"), **how)


def states(sampler: Any, denoise: Any) -> list[Tensor]:
    """States after each step."""
    seen: list[Tensor] = []
    run(sampler, denoise, callback=lambda i, x, p: seen.append(x.clone()))
    return seen


@pytest.mark.parametrize("inner", [DDIM, DDPM])
def test_without_a_radius_samples_are_the_samplers_own_bit_for_bit(inner: Any) -> None:
    """And no evaluation is spent on the attack."""
    plain = attacked(inner).inner.sampler
    wanted, found = run(plain, Linear(0.5)), run(attacked(inner, radius=0.0), Linear(0.5))
    assert torch.equal(found.x0, wanted.x0)
    assert found.nfe == wanted.nfe == 6


@pytest.mark.parametrize("kind", ["pgd", "random", "gaussian"])
def test_a_vanishing_attack_keeps_the_samplers_own_noise(kind: str) -> None:
    """At a radius of 1e-9 ancestral samples are those without attack: its draws are its own."""
    wanted = run(attacked(DDPM).inner.sampler, Linear(0.5)).x0
    found = run(attacked(DDPM, radius=1e-9, law="fixed", kind=kind), Linear(0.5)).x0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@given(
    kind=st.sampled_from(["pgd", "random"]),
    norm=st.sampled_from(["linf", "l2"]),
    law=st.sampled_from(["ray", "fixed"]),
    unit=st.sampled_from(["image", "noise"]),
    radius=st.floats(0.01, 2.0),
)
def test_each_state_stays_in_its_ball(
    kind: str, norm: str, law: str, unit: str, radius: float
) -> None:
    """The first attacked state differs from the plain one by at most the radius of its level."""
    keys = {"kind": kind, "norm": norm, "unit": unit, "radius": radius, "law": law}
    made = attacked(steps=3, attacked=1, attack_steps=2, **keys)
    (place,) = chosen_steps(3, 1)
    plain = states(made.inner.sampler, Linear(0.5))[place - 1]
    moved = states(made, Linear(0.5))[place - 1] - plain
    t = made.grid()[place : place + 1]
    limit = reach(made.settings, SCHEDULE.alpha(t), SCHEDULE.sigma(t), 3)
    length = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert bool((length <= limit * (1 + 1e-6)).all())
    assert bool((length > 0).all())


def test_gaussian_control_has_the_largest_norm_in_the_ball() -> None:
    """Radius times the root of the dimension for the box, the radius of the sphere for L2."""
    for norm in ("linf", "l2"):
        made = attacked(
            steps=3, attacked=1, kind="gaussian", norm=norm, radius=0.3, law="fixed", unit="image"
        )
        moved = states(made, Linear(0.5))[0] - states(made.inner.sampler, Linear(0.5))[0]
        wanted = torch.full((3,), 0.3 * 3**0.5).double()
        torch.testing.assert_close(moved.norm(dim=1), wanted, rtol=1e-6, atol=0)


def test_images_depend_on_their_seed_alone_and_runs_repeat() -> None:
    """Alone, in a batch, in another order, again: the same image."""
    made = attacked(radius=0.5)
    whole = run(made, Linear(0.5)).x0
    assert torch.equal(run(made, Linear(0.5)).x0, whole)
    torch.testing.assert_close(run(made, Linear(0.5), [7, 5]).x0, whole[[2, 0]])
    assert not torch.allclose(run(made, Linear(0.5), [8]).x0, whole[:1])


@pytest.mark.parametrize(("wanted", "each"), [("pgd", 1 + 3), ("random", 0), ("gaussian", 0)])
def test_every_evaluation_is_counted(wanted: str, each: int) -> None:
    """Two attacked states: one clean forward and steps + 1 at moved inputs for each ascent."""
    denoise = Linear(0.5)
    found = run(attacked(kind=wanted, attacked=2, **_two(wanted)), denoise)
    assert found.nfe == denoise.calls == 6 + 2 * each


def _two(kind: str) -> dict[str, Any]:
    return {"attack_steps": 2} if kind == "pgd" else {}


def test_the_ascent_beats_chance_at_an_equal_radius() -> None:
    """On Gaussian data of two deviations the gap after PGD is larger than at random starts."""
    denoise = Linear(torch.tensor([1.0, 0.2, 0.05]))

    def gap(kind: str, **more: Any) -> float:
        made = attacked(
            steps=3, attacked=1, kind=kind, radius=0.3, law="fixed", unit="image", **more
        )
        plain, moved = states(made.inner.sampler, denoise)[0], states(made, denoise)[0]
        t = made.grid()[1].expand(3)
        difference: Tensor = denoise(moved, t).eps - denoise(plain, t).eps
        return float(difference.square().sum())

    assert gap("pgd", attack_steps=5) > 1.5 * gap("random")


def test_an_equivariant_denoiser_forgets_the_attack() -> None:
    """Where x0_hat does not move with the input, samples end where they would have."""
    found = run(attacked(radius=2.0), Linear(0.0)).x0
    torch.testing.assert_close(found, torch.full_like(found, 0.3), atol=1e-5, rtol=0)


def test_a_callers_callback_sees_and_replaces_the_attacked_state() -> None:
    """The last state it is told is the result; what it returns is the result."""
    made = attacked(radius=0.5)
    seen = states(made, Linear(0.5))
    assert torch.equal(seen[-1], run(made, Linear(0.5)).x0)

    def zero(index: int, x: Tensor, prediction: Prediction) -> Tensor | None:
        return torch.zeros_like(x) if index == 5 else None

    assert float(run(made, Linear(0.5), callback=zero).x0.abs().max()) == 0


def test_steps_reach_the_wrapped_sampler() -> None:
    """A wrapper's `steps` are those of what it wraps."""
    inner = spec_of("sampler", DDIM, steps=6)
    outer = spec_of("sampler", Attacked, sampler=inner, radius=0.5)
    assert with_steps(outer, 9).settings.sampler.settings.steps == 9
    assert with_steps(outer, 9).settings.radius == 0.5


@given(total=st.integers(1, 200), wanted=st.integers(0, 250))
def test_chosen_steps_are_spread_evenly(total: int, wanted: int) -> None:
    """As many as asked for, each once, in order, with gaps that differ by at most one."""
    found = chosen_steps(total, wanted)
    assert len(found) == (wanted if 0 < wanted < total else total)
    assert sorted(set(found)) == list(found)
    assert 0 <= found[0] <= found[-1] < total
    gaps = {b - a for a, b in itertools.pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(
    gradient=st.lists(st.floats(-2, 2).filter(lambda v: abs(v) > 1e-3), min_size=3, max_size=3),
    radius=st.floats(0.1, 2.0),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_ascent_of_a_linear_function_ends_at_its_maximum(
    gradient: list[float], radius: float, norm: Any
) -> None:
    """At the corner, or the point of the sphere along the gradient."""
    slope = torch.tensor([gradient]).double()
    size = torch.tensor([radius]).double()
    found = ascend(
        lambda d: (d * slope).sum(1), torch.zeros(1, 3).double(), size,
        norm=norm, steps=10, step_scale=0.5,
    )  # fmt: skip
    unit = slope.sign() if norm == "linf" else slope / slope.norm()
    torch.testing.assert_close(found, radius * unit, rtol=1e-6, atol=1e-9)


def test_ascent_keeps_the_best_point_it_saw() -> None:
    """Steps far beyond a narrow peak are not taken over the start beside it."""
    start = torch.tensor([[0.05]]).double()
    found = ascend(
        lambda d: -(d - 0.1).square().sum(1), start, torch.ones(1).double(),
        norm="linf", steps=3, step_scale=1.0,
    )  # fmt: skip
    assert torch.equal(found, start)


def test_radii_follow_the_ray_or_stay_and_have_units() -> None:
    """On VP: c (s^2 + gamma), times sigma in noise units, times the root of D for L2."""
    alpha, sigma = torch.tensor([0.8]).double(), torch.tensor([0.6]).double()
    ray = ReachSettings(radius=2.0, gamma=0.1, unit="image")
    assert float(reach(ray, alpha, sigma, 4)) == pytest.approx(2 * (0.36 + 0.1))
    noise = ReachSettings(radius=2.0, gamma=0.1)
    assert float(reach(noise, alpha, sigma, 4)) == pytest.approx(0.6 * 2 * 0.46)
    fixed = ReachSettings(radius=2.0, law="fixed", unit="image", norm="l2")
    assert float(reach(fixed, alpha, sigma, 4)) == pytest.approx(4.0)


def test_starts_are_uniform_in_the_box_and_on_the_sphere() -> None:
    """Moments of U(-r, r) from normal numbers; norms of exactly the radius."""
    normal = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)).double()
    radius = torch.full((4000,), 0.5).double()
    box = uniform_start(normal, radius, "linf")
    assert float(box.abs().max()) <= 0.5
    assert float(box.var()) == pytest.approx(0.25 / 3, rel=0.03)
    assert float((box.abs() < 0.25).double().mean()) == pytest.approx(0.5, abs=0.02)
    sphere = uniform_start(normal, radius, "l2")
    torch.testing.assert_close(sphere.norm(dim=1), radius, rtol=1e-6, atol=0)


def test_an_attack_without_a_schedule_is_refused() -> None:
    """R10 at the sampler's key."""
    spec = spec_of("sampler", DDIM)
    told = Build(path="sample", make=lambda spec: DDIM(spec.settings, build()))
    settings: Any = Attacked.Settings
    with pytest.raises(RecipeError, match="an attack on the path needs a noise schedule") as c:
        Attacked(settings(sampler=spec), told)
    assert c.value.faults[0].key == "sample.use"


def curve(**keys: Any) -> TrajectoryAttack:
    """The metric, with distance to the plane z = 0.3 fitted by three points as quality."""
    told = build(make=lambda spec: SubspaceDistance(spec.settings, build()))
    settings: Any = TrajectoryAttack.Settings
    metric = spec_of("metric", SubspaceDistance, components=2)
    return TrajectoryAttack(settings(metric=metric, steps=5, attack_steps=2, **keys), told)


def test_trajectory_metric_gives_curves_over_radius_and_steps(tmp_path: Path) -> None:
    """Numbers by kind and point, files for both curves; the plain number is that of no attack."""
    clean = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    clean = clean * torch.tensor([1.0, 1.0, 0.0])
    world = World(tmp_path, Linear(1.0, centre=0.0), clean)
    found = curve(radii=(0.5, 5.0), counts=(1,)).compute(world)
    end = "trajectory_subspace_distance"
    names = [f"{end}_{kind}_{at}" for kind in ("pgd", "gaussian") for at in ("r0.5", "r5", "k1")]
    assert list(found) == [f"{end}_plain", *names]
    plain = world.generate(world.sampler(5)).x0
    wanted = curve().quality.compute(world.with_samples(plain))["subspace_distance"]
    assert found[f"{end}_plain"] == pytest.approx(wanted)
    assert found[f"{end}_plain"] < found[f"{end}_pgd_r5"]
    assert found[f"{end}_pgd_r0.5"] < found[f"{end}_pgd_r5"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    for name in ("trajectory-radius-inner", "trajectory-attacked-inner"):
        rows = (tmp_path / f"{name}.csv").read_text().splitlines()
        assert rows[0].startswith("curve,")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert len(rows) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"radii": (), "counts": ()}, "radii: found none, and no counts, wanted a curve"),
        ({"radii": (1.0, 1.0)}, r"radii: found \[1.0, 1.0\], wanted each once"),
        ({"counts": (2, 2)}, r"counts: found \[2, 2\], wanted each once"),
    ],
)
def test_trajectory_metric_refuses_empty_and_double_curves(
    keys: dict[str, Any], words: str
) -> None:
    """Told by the settings."""
    with pytest.raises(ValueError, match=words):
        curve(**keys)
