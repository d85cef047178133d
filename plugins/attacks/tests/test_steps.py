"""Steps, starts and the best point of FGSM and PGD."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from advdiff_attacks.best import Best
from advdiff_attacks.climb import sparse_ascent
from advdiff_attacks.objectives import kl, margin
from advdiff_attacks.starts import start
from advdiff_attacks.steps import FGSM, PGD
from torch import Tensor

from advdiff_core import Budget, RecipeError
from advdiff_core.math import norms
from advdiff_core.types import Domain

sys.path.insert(0, str(Path(__file__).parent))
from attack_cases import UNIT, FunctionVictim, attack, draws, linear

BALL = Budget("linf", 0.1, "image")


def points(size: int = 6) -> Tensor:
    """Inputs [size, 3, 2, 2] in [0.3, 0.7], float64: away from the walls."""
    generator = torch.Generator().manual_seed(3)
    return 0.3 + 0.4 * torch.rand(size, 3, 2, 2, generator=generator, dtype=torch.float64)


def hills(x: Tensor) -> Tensor:
    """Two logits of a rough landscape: starts end on different hills."""
    flat = x.flatten(1)
    height = torch.sin(40 * flat).sum(1) + torch.sin(23 * flat + 1).prod(1)
    return torch.stack([-height, height - 30], 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_reaches_the_optimum_of_a_linear_margin(norm: str) -> None:
    """For two classes the best point is a corner of the ball; L1 takes one coordinate a step."""
    logits, x = linear(classes=2), points()
    y = torch.zeros(6, dtype=torch.long)
    pgd = attack(PGD, loss="margin", steps=40, start="none", sparsity=0.01)
    radius = 0.1
    victim = FunctionVictim(logits, y)
    found = pgd.run(victim, x, Budget(norm, radius, "image"), domain=None, rng=draws(6))
    weight = logits(torch.eye(12, dtype=torch.float64)).T
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    slope = norms.norm((weight[1] - weight[0])[None], dual)
    gained = (logits(found) - logits(x)) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gained, (radius * slope).expand(6), rtol=1e-5, atol=0)


def test_sparse_steps_have_unit_length_and_move_the_steepest_that_can() -> None:
    """Tramer and Boneh (2019): a coordinate at its wall is passed over."""
    gradient = torch.tensor([[4.0, -3.0, 2.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5, 0.5, 0.5]], dtype=torch.float64)
    free = sparse_ascent(gradient, x, None, share=0.5)
    assert free.tolist() == [[0.5, -0.5, 0.0, 0.0]]
    walled = sparse_ascent(gradient, x, UNIT, share=0.5)
    assert walled.tolist() == [[0.0, -0.5, 0.5, 0.0]]
    assert sparse_ascent(gradient * 0, x, None, share=0.5).abs().sum() == 0
    assert sparse_ascent(gradient, x, None, share=0.01).tolist() == [[1.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_corners_lie_on_the_boundary(norm: str, scale: float) -> None:
    """Linf signs in every coordinate, an L2 direction, one L1 coordinate."""
    x = points(40)
    budget = Budget(norm, torch.full((40,), 0.2, dtype=torch.float64), "image")
    begin = start(x, budget, None, draws(40), law="corners", scale=scale)
    length = norms.norm(begin - x, norm)
    torch.testing.assert_close(length, torch.full((40,), 0.2 * scale).double(), rtol=1e-5, atol=0)
    moved = (begin != x).flatten(1).sum(1)
    assert set(moved.tolist()) == ({1} if norm == "l1" else {12})


def test_gaussian_starts_have_the_std_on_the_scale_of_the_data() -> None:
    """0.001 on [0, 1] is 0.002 on [-1, 1] (TRADES)."""
    x = torch.zeros(2000, 3, 2, 2, dtype=torch.float64)
    budget = Budget("linf", torch.full((2000,), 0.5), "image")
    begin = start(x, budget, Domain(-1.0, 1.0), draws(2000), law="gaussian")
    assert float(begin.std()) == pytest.approx(0.002, rel=0.02)
    assert abs(float(begin.mean())) < 5e-5


def test_uniform_starts_fill_the_ball_and_stay_in_the_domain() -> None:
    """Their mean distance in Linf is D / (D + 1) of the radius."""
    x = points(2000)
    budget = Budget("linf", torch.full((2000,), 0.2), "image")
    begin = start(x, budget, UNIT, draws(2000), law="uniform")
    mean = float(norms.norm(begin - x, "linf").mean())
    assert mean == pytest.approx(0.2 * 12 / 13, rel=0.01)


def test_restarts_keep_the_best_point_of_each_sample() -> None:
    """More restarts are never worse, and better for some; the first climb is the same."""
    x, y = points(16), torch.zeros(16, dtype=torch.long)
    losses = []
    for restarts in (1, 2, 6):
        pgd = attack(PGD, loss="margin", restarts=restarts, steps=5)
        victim = FunctionVictim(hills, y)
        found = pgd.run(victim, x, BALL, domain=UNIT, rng=draws(16))
        losses.append(margin(hills(found), y))
        assert victim.calls == pgd.cost().probes == 1 + 6 * restarts
    assert (losses[1] >= losses[0] - 1e-9).all()
    assert (losses[2] >= losses[1] - 1e-9).all()
    assert (losses[2] > losses[0] + 1e-3).any()


def test_the_best_point_is_kept_where_the_last_is_worse() -> None:
    """Steps that jump over the hills end lower than they were on the way."""
    x, y = points(16), torch.zeros(16, dtype=torch.long)
    victim = FunctionVictim(hills, y)
    attacks = [
        attack(PGD, loss="margin", steps=7, step_scale=1.7, keep=k) for k in ("best", "last")
    ]
    found = [one.run(victim, x, BALL, domain=UNIT, rng=draws(16)) for one in attacks]
    best, last = (margin(hills(at), y) for at in found)
    assert (best >= last - 1e-9).all()
    assert (best > last + 1e-3).any()


def test_dropping_broken_samples_changes_no_verdict_and_asks_less() -> None:
    """Samples are left alone once broken, and come back broken."""
    logits, x = linear(), points(24)
    y = logits(x).argmax(1)
    y[:4] = (y[:4] + 1) % 3
    results = {}
    for drop in (False, True):
        victim = FunctionVictim(logits, y)
        pgd = attack(PGD, steps=6, restarts=2, drop_broken=drop, step_scale=0.1)
        found = pgd.run(victim, x, BALL, domain=UNIT, rng=draws(24))
        results[drop] = (victim.broken(logits(found)), sum(victim.sizes), found)
    assert torch.equal(results[False][0], results[True][0])
    assert 0 < int(results[True][0].sum()) < 24
    assert results[True][1] < results[False][1] * 0.7
    assert torch.equal(results[True][2][:4], x[:4])


def test_training_pgd_asks_for_nothing_but_its_steps() -> None:
    """Ten forwards and ten gradients for ten steps; `kl` looks at the clean points once more."""
    x, y = points(), torch.zeros(6, dtype=torch.long)
    for loss, more in (("victim", 0), ("ce", 0), ("margin", 0), ("dlr", 0), ("kl", 1)):
        victim = FunctionVictim(linear(), y)
        pgd = attack(PGD, steps=10, keep="last", loss=loss)
        pgd.run(victim, x, BALL, domain=UNIT, rng=draws(6))
        assert victim.calls == pgd.cost().probes == 10 + more
        assert pgd.cost().input_backwards == 10


def test_kl_moves_away_from_the_clean_prediction_whatever_the_label() -> None:
    """The inner problem of TRADES (Zhang et al. 2019) knows no labels."""
    logits, x = linear(), points()
    pgd = attack(PGD, loss="kl", start="gaussian", keep="last", steps=5)
    found = [
        pgd.run(FunctionVictim(logits, torch.full((6,), label)), x, BALL, domain=UNIT, rng=draws(6))
        for label in (0, 1)
    ]
    assert torch.equal(*found)
    assert (kl(logits(found[0]), logits(x)) > 1e-3).all()


def test_a_tie_keeps_the_older_point() -> None:
    """A flat loss returns the clean point itself."""
    x = points()
    victim = FunctionVictim(lambda at: at.flatten(1)[:, :3] * 0, torch.zeros(6, dtype=torch.long))
    found = attack(PGD, steps=3).run(victim, x, BALL, domain=UNIT, rng=draws(6))
    assert torch.equal(found, x)


def test_a_broken_point_beats_a_larger_loss() -> None:
    """Of a sample that was broken once, no later point that is not broken is taken."""
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    best = Best(zero, torch.tensor([5.0]), torch.tensor([False]))
    best.update(one, torch.tensor([1.0]), torch.tensor([True]))
    assert torch.equal(best.x, one)
    best.update(2 * one, torch.tensor([9.0]), torch.tensor([False]))
    assert torch.equal(best.x, one)
    best.update(3 * one, torch.tensor([2.0]), torch.tensor([True]), rows=torch.tensor([0]))
    assert torch.equal(best.x, 3 * one)


@pytest.mark.parametrize(
    ("component", "keys", "words"),
    [
        (PGD, {"restarts": 3, "keep": "last"}, ("attack.keep", "3 restarts", "restarts = 1")),
        (PGD, {"restarts": 2, "start": "none"}, ("attack.start", "clean point", "uniform")),
        (PGD, {"loss": "kl", "start": "none"}, ("attack.start", "vanishes", "gaussian")),
        (FGSM, {"loss": "kl"}, ("attack.start", "vanishes", "gaussian")),
    ],
)
def test_settings_that_mean_nothing_are_refused(component, keys, words) -> None:
    """Each in one line with its mend."""
    with pytest.raises(RecipeError) as caught:
        attack(component, **keys)
    fault = caught.value.faults[0]
    for word in words:
        assert word in f"{fault.key} {fault.message} {fault.fix}"
