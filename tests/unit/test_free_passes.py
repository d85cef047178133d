"""Several passes on one batch: averages, masks, counters, and what a free view is warned of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_toys.networks import ToyNet

from advdiff_core import DataInfo, Forward, LossTerm, Step
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import loads_recipe, recipe_from_dict
from advdiff_core.testing.steps import Model, Turn, build_stage, run_step

FREE: dict[str, Any] = {
    "advdiff": 1,
    "run": {"images": 64, "batch": 16, "seed": 3, "precision": "fp32"},
    "data": {"use": "two-moons", "count": 90},
    "models": {"student": {"use": "toy-net"}},
    "views": {"free": {"from": "clean", "perturb": {"use": "toy-free"}}},
    "terms": {"denoise": {"use": "denoise", "view": "free"}},
    "players": {
        "student": {
            "terms": ["denoise"],
            "optimizer": {"use": "sgd", "lr": 0.1},
            "lr_schedule": {"law": "cosine", "warmup": 32},
        }
    },
}


def trainer_of(**player: Any) -> Trainer:
    """A trainer whose player has these keys too."""
    keys = {**FREE["players"]["student"], "update": "pass", **player}
    recipe = recipe_from_dict({**FREE, "players": {"student": keys}})
    return Trainer(assemble(recipe), world=World(), ticks=None, stop=StopFlag())


def left_of(rule: dict[str, float], passes: int, steps: int = 3) -> float:
    """What an average still holds of its first value after a few steps whose weights are fixed."""
    keys = {"optimizer": {"use": "sgd", "lr": 1e-30}, "ema": [rule], "passes": passes}
    trainer = trainer_of(**keys)
    ema = trainer.experiment.players[0].emas["student"][0]
    name = next(iter(ema.shadow))
    start = ema._parameters[name].detach().clone()
    ema.shadow[name] += 1.0
    for _ in range(steps):
        trainer.train_step()
    assert ema.updates == passes * steps
    return float((ema.shadow[name] - start).mean())


@pytest.mark.parametrize("rule", [{"halflife": 24}, {"power": 0.2}])
def test_an_average_in_images_forgets_by_images(rule: dict[str, float]) -> None:
    """As much in a batch of three updates as in one of a single update: 2^-2 over 48 images."""
    once, thrice = left_of(rule, 1), left_of(rule, 3)
    assert thrice == pytest.approx(once, rel=1e-4, abs=1e-6)
    if "halflife" in rule:
        assert once == pytest.approx(0.25, rel=1e-4)


def test_an_average_in_updates_forgets_by_updates() -> None:
    """A rate is that of an update, as in the released code of free adversarial training."""
    factors = {n: (1 + n) / (10 + n) for n in range(9)}
    expected = 1.0
    for factor in factors.values():
        expected *= min(0.5, factor)
    assert left_of({"rate": 0.5}, 3) == pytest.approx(expected, rel=1e-3)


def test_images_and_learning_rate_move_once_a_batch() -> None:
    """Three updates later the run is one batch further, at the rate of one."""
    once, thrice = trainer_of(passes=1), trainer_of(passes=3)
    for _ in range(3):
        for trainer in (once, thrice):
            trainer.train_step()
    assert once.nimg == thrice.nimg == 48
    rates = [t.experiment.players[0].optimizer.param_groups[0]["lr"] for t in (once, thrice)]
    assert rates[0] == rates[1]
    assert [t.experiment.players[0].updates for t in (once, thrice)] == [3, 9]


class Outputs(LossTerm):
    """Keeps what the student says in each pass, twice: on two views."""

    def __init__(self, settings: Any, build: Any) -> None:
        super().__init__(settings, build)
        self.needs = (Forward(), Forward(through=True))
        self.found: list[list[torch.Tensor]] = []

    def forward(self, step: Step) -> torch.Tensor:
        """Their squares."""
        values = [step.get(query).value for query in self.needs]
        self.found.append([value.detach() for value in values])
        return values[0].square().flatten(1).mean(1)


@pytest.mark.parametrize("moves", [True, False])
def test_masks_are_drawn_anew_once_the_weights_have_moved(moves: bool) -> None:
    """All forwards of a pass share theirs; without an update in between, those of all passes."""
    model = Model(ToyNet, ToyNet.Settings(dropout=0.5), train=True)
    made = build_stage(data=DataInfo(shape=(3,), count=64), models={"student": model})
    term = made.make(Outputs)
    x0 = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run_step(made, [Turn("student", {"t": term}, passes=3, moves=moves)], x0)
    for one, other in term.found:
        assert torch.equal(one, other)
    first, second, third = (pair[0] for pair in term.found)
    assert torch.equal(first, second) is not moves
    assert torch.equal(second, third) is not moves


TEXT = """
advdiff = 1
[run]
name = "x"
images = 64
batch = 16
[data]
use = "two-moons"
[models.student]
use = "toy-net"
[views.free]
from = "clean"
perturb = { use = "toy-free" }
[views.more]
from = "free"
perturb = { use = "toy-shift" }
[terms.denoise]
use = "denoise"
view = "VIEW"
[players.student]
terms = ["denoise"]
passes = PASSES
optimizer = { use = "sgd", lr = 0.1 }
"""


@pytest.mark.parametrize(
    ("view", "passes", "warned"),
    [("free", 1, True), ("more", 1, True), ("free", 2, False), ("clean", 1, False)],
)
def test_a_free_view_that_nobody_moves_is_warned_of(view: str, passes: int, warned: bool) -> None:
    """Plain training, said before the run; not where nobody looks, nor where it moves."""
    recipe = loads_recipe(TEXT.replace("VIEW", view).replace("PASSES", str(passes)), Path("x.toml"))
    notes = [note for note in recipe.warnings if "starts at 0" in note.message]
    assert bool(notes) is warned
    if warned:
        assert notes[0].key == "views.free.perturb"
        assert "with one it stays" in notes[0].message
