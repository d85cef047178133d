"""Times drawn by their losses: the law, unbiased weights, history, checkpoints, passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_atdiff.loss_second_moment import LossSecondMoment
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, RecipeError
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.schedules import VPCosine

COUNT = 8


def made(count: int = COUNT, **keys: Any) -> LossSecondMoment:
    """The law on a short schedule."""
    schedule = VPCosine(VPCosine.Settings(num_steps=count), Build())
    settings: Any = LossSecondMoment.Settings
    return LossSecondMoment(
        settings(**keys), Build(path="schedule.density.sampler", schedule=schedule)
    )


def times(*numbers: int, count: int = COUNT) -> Tensor:
    """The training times of these numbers, from 0, in the type of a step."""
    return (torch.tensor(numbers) + 1).float() / count


def taught(losses: Tensor, **keys: Any) -> LossSecondMoment:
    """The law after `losses` [H, T], a row at a time."""
    law = made(losses.shape[1], history=len(losses), **keys)
    for row in losses:
        law.observe(times(*range(losses.shape[1]), count=losses.shape[1]), row)
    return law


def ladder(count: int) -> Tensor:
    """Uniform numbers, one in the middle of each of so many strata."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def test_times_are_uniform_until_each_has_its_history() -> None:
    """Weights of exactly 1, times of the schedule's own quantile function; one loss is missing."""
    law, u = made(history=3), ladder(97)
    rounds = torch.arange(COUNT).repeat(3)[:-1]
    law.observe(times(*rounds.tolist()), torch.linspace(0.1, 5.0, len(rounds)))
    found = law.draw(u, 0)
    assert torch.equal(found.weight, torch.ones(97).double())
    torch.testing.assert_close(found.t, law.schedule.quantile(u), rtol=0, atol=1e-12)
    law.observe(times(COUNT - 1), torch.tensor([2.0]))
    assert not torch.equal(law.draw(u, 0).weight, torch.ones(97).double())


def test_probabilities_are_those_of_the_paper() -> None:
    """Roots of mean squares, mixed with a uniform share; float64 by hand."""
    losses = torch.rand(4, COUNT, generator=torch.Generator().manual_seed(0)) + 0.1
    law = taught(losses, uniform=0.2)
    roots = losses.double().square().mean(0).sqrt()
    wanted = 0.8 * roots / roots.sum() + 0.2 / COUNT
    torch.testing.assert_close(law.density() / COUNT, wanted, rtol=1e-12, atol=0)
    found = law.draw(ladder(20_000), 0).t
    counts = torch.stack([(found - t).abs() < 1e-9 for t in times(*range(COUNT)).double()])
    torch.testing.assert_close(counts.double().mean(1), wanted, rtol=0, atol=1e-4)


@given(
    losses=st.lists(st.floats(0, 100), min_size=3, max_size=12),
    uniform=st.sampled_from([0.001, 0.1, 1.0]),
    values=st.randoms(use_true_random=False),
)
def test_importance_weights_keep_the_expectation_of_uniform_times(
    losses: list[float], uniform: float, values: Any
) -> None:
    """For any losses, 0 included, and any function of time: E[w f(t)] is its plain mean."""
    count = len(losses)
    law = taught(torch.tensor([losses]), uniform=uniform)
    f = torch.tensor([values.uniform(-1, 1) for _ in losses], dtype=torch.float64)
    density = law.density()
    torch.testing.assert_close(density.mean(), torch.tensor(1.0).double(), rtol=1e-12, atol=0)
    drawn = law.draw(ladder(100_000), 0)
    number = (drawn.t * count).round().long() - 1
    assert drawn.weight is not None
    torch.testing.assert_close(drawn.weight, 1 / density[number])
    # Each boundary between two times misplaces less than one stratum.
    most = float((1 / density).max())
    assert float((drawn.weight * f[number]).mean() - f.mean()) == pytest.approx(
        0, abs=2 * count * most / 100_000
    )


def test_only_the_last_losses_count_in_whatever_batches_they_came() -> None:
    """A ring: one batch with many losses of a time, or one at a time, and old ones are gone."""
    stream = torch.rand(60, generator=torch.Generator().manual_seed(1))
    numbers = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    whole, single = made(history=4), made(history=4)
    whole.observe(times(*numbers[:50]), stream[:50])
    whole.observe(times(*numbers[50:]), stream[50:])
    for number, loss in zip(numbers, stream, strict=True):
        single.observe(times(number), loss[None])
    assert torch.equal(whole.seen, single.seen)
    for number in range(3):
        mine = [float(v) for n, v in zip(numbers, stream, strict=True) if n == number][-4:]
        for law in (whole, single):
            assert sorted(law.losses[number].tolist()) == sorted(mine)
    assert not whole.losses[3:].any()


def test_losses_that_are_no_numbers_are_left_out() -> None:
    """NaN and infinity leave history and counts alone; the numbers beside them are kept."""
    law = made(history=2)
    bad = torch.tensor([float("nan"), 0.5, float("inf"), -float("inf")])
    law.observe(times(1, 1, 1, 2), bad)
    assert law.seen[:-1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert law.losses[1].tolist() == [0.5, 0.0]
    assert not law.losses[-1].any()
    assert law.density().isfinite().all()


def test_continuous_schedules_are_refused() -> None:
    """They have no times that come back; so is a recipe without a schedule."""
    endless = VPCosine(VPCosine.Settings(num_steps=0), Build())
    for schedule in (endless, None):
        told = Build(path="schedule.density.sampler", schedule=schedule)
        with pytest.raises(RecipeError, match="a continuous time never comes back") as caught:
            LossSecondMoment(LossSecondMoment.Settings(), told)
        assert caught.value.faults[0].key == "schedule.density.sampler.use"


RECIPE: dict[str, Any] = {
    "advdiff": 1,
    "run": {"images": 320, "batch": 16, "seed": 3, "precision": "fp32", "checkpoint_every": 160},
    "data": {"use": "two-moons", "count": 90},
    "schedule": {
        "use": "vp-linear", "num_steps": 6,
        "density": {"sampler": {"use": "loss-second-moment", "history": 3}},
    },
    "sample": {"use": "ddpm", "steps": 3},
    "models": {"student": {"use": "mlp", "width": 8, "blocks": 1, "learn_sigma": True}},
    "views": {"adv": {"from": "clean", "perturb": {"use": "free"}}},
    "terms": {"hybrid": {"use": "hybrid", "view": "adv"}},
    "players": {
        "student": {
            "terms": ["hybrid"], "optimizer": {"use": "adamw", "lr": 1e-2}, "passes": 3,
            "update": "pass",
        }
    },
}  # fmt: skip


def trainer_of(recipe: Any) -> Trainer:
    """A trainer before its first step."""
    return Trainer(assemble(recipe), world=World(), ticks=None, stop=StopFlag())


def test_it_resumes_bit_for_bit_and_hears_every_pass(tmp_path: Path) -> None:
    """History, draws and weights of the networks; each pass adds an entry per sample."""
    recipe = recipe_from_dict(RECIPE)
    run = train(recipe, out=tmp_path).run
    middle, end = (load(run / "checkpoints" / name) for name in ("160", "320"))
    trainer = trainer_of(recipe)
    trainer.load(middle.shared, middle.rank_state)
    law = trainer.scene.times
    assert isinstance(law, LossSecondMoment)
    assert int(law.seen.sum()) == 10 * 16 * 3
    assert float((law.density() - 1).abs().max()) > 0.01
    for _ in range(10):
        trainer.train_step()
    shared, _ = trainer.state()
    assert int(law.seen.sum()) == 20 * 16 * 3
    for table in ("times", "models"):
        _same(shared[table], end.shared[table])


def _same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            _same(found[key], wanted[key])
    else:
        assert torch.equal(found, wanted)
