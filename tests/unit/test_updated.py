"""What networks and terms do after the weights have moved, and what they are told of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_toys.networks import ToyCritic, ToyNet
from advdiff_toys.terms import ToyFool, ToyJudge

from advdiff_core.datasets.points import TwoMoons
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.sharding import share_out
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import UsageError
from advdiff_core.interfaces.backbone import Backbone
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.recipe import load_recipe
from advdiff_core.testing import Model, Turn, build_stage, run_step
from advdiff_core.types import DataInfo

PLAYERS = Path(__file__).parents[1] / "recipes" / "players.toml"


def told(monkeypatch: pytest.MonkeyPatch, **changes: str) -> tuple[Trainer, list[str]]:
    """A run of a student, and of a judge every second step; who was told of an update."""
    recipe = load_recipe(PLAYERS, overrides=[f"{k}={v}" for k, v in changes.items()])
    trainer: Any = Trainer(assemble(recipe), world=World(), ticks=None, stop=StopFlag())
    named = {role.module: name for name, role in trainer.scene.roles.items()}
    for player in trainer.experiment.players:
        named |= {term.module: f"term {term.name}" for term in player.terms}
    calls: list[str] = []

    def updated(module: ModuleComponent) -> None:
        assert not torch.is_grad_enabled()
        calls.append(named[module])

    monkeypatch.setattr(ModuleComponent, "updated", updated)
    return trainer, calls


def test_networks_and_terms_hear_of_each_update_of_their_own_player(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The judge acts every second step, and hears nothing in the others."""
    trainer, calls = told(monkeypatch)
    students = ["student", "term denoise", "term equivariance", "term fool"]
    trainer.train_step()
    assert calls == ["judge", "term judge", *students]
    calls.clear()
    trainer.train_step()
    assert calls == students


def test_each_pass_that_moves_weights_is_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `update = "pass"` three passes are three updates, else one."""
    keys = {"players.student.passes": "3", "players.student.update": '"pass"'}
    trainer, calls = told(monkeypatch, **keys)
    trainer.train_step()
    assert calls.count("student") == 3
    keys["players.student.update"] = '"batch"'
    trainer, calls = told(monkeypatch, **keys)
    trainer.train_step()
    assert calls.count("student") == 1


def test_what_follows_the_weights_is_seen_by_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages of the player are taken after it."""
    trainer, _ = told(monkeypatch)
    player = next(p for p in trainer.experiment.players if p.name == "student")
    ema, bias = player.emas["student"][0], player.roles[0].module.last.bias

    def moved(module: ModuleComponent) -> None:
        if module is player.roles[0].module:
            bias.fill_(100.0)

    monkeypatch.setattr(ModuleComponent, "updated", moved)
    before = ema.shadow["last.bias"].clone()
    trainer.train_step()
    assert (ema.shadow["last.bias"] > before + 0.1).all()


def test_a_stage_tells_of_updates_like_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that moves weights tells its own models and terms."""
    models = {"student": Model(ToyNet), "judge": Model(ToyCritic, kind="discriminator")}
    made = build_stage(data=DataInfo(shape=(3,), count=9), models=models)
    calls: list[str] = []
    monkeypatch.setattr(ModuleComponent, "updated", lambda one: calls.append(type(one).__name__))
    x = torch.zeros(2, 3, dtype=torch.float64)
    run_step(made, [Turn("student", {"fool": made.make(ToyFool)}, rate=0.1)], x)
    assert calls == ["ToyNet", "ToyFool"]
    run_step(made, [Turn("judge", {"judge": made.make(ToyJudge)})], x)
    assert calls == ["ToyNet", "ToyFool"]


def test_a_network_that_acts_after_its_update_is_not_shared_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its processes would each hold rows of the weights; one line with the key, before the run."""
    recipe = load_recipe(PLAYERS, overrides=["models.judge.shard=true"])
    roles = assemble(load_recipe(PLAYERS)).scene.roles
    monkeypatch.setattr(ToyCritic, "updated", lambda self: None, raising=False)
    with pytest.raises(UsageError, match="'judge' works on its whole weights") as caught:
        share_out(recipe, roles, 2, torch.device("cpu"))
    assert (caught.value.code, caught.value.where) == ("R10", "models.judge.shard")
    assert caught.value.fix == "take `shard` out of this model"


def test_terms_know_how_the_recipe_names_the_others() -> None:
    """A term that shares the queries of another one reads the settings of that one."""
    made = assemble(load_recipe(PLAYERS))
    assert set(made.build.terms) == {"denoise", "equivariance", "fool", "judge"}
    fool = made.build.terms["fool"]
    assert (fool.use, fool.settings.judge) == ("toy-fool", "judge")
    assert Build().terms == {}


def test_models_are_built_in_an_order_in_which_judges_may_run_backbones() -> None:
    """Whatever their names: the judge comes before the student in the alphabet."""
    made = assemble(load_recipe(PLAYERS))
    judge: Any = made.scene.roles["judge"].module
    assert set(judge.build.models) == {"student"}


class Once(Backbone):
    """A backbone whose gradient has no gradient."""

    supports_double_backward = False

    @property
    def taps(self) -> dict[str, Any]:
        """None."""
        return {}

    def forward(self, x: Any, *_: object, **__: object) -> Any:
        """Never run."""
        raise NotImplementedError


def test_terms_know_which_networks_have_second_derivatives() -> None:
    """A gradient penalty can then be refused before the run."""
    models = {
        "student": Model(ToyNet),
        "once": Model(Once),
        "judge": Model(ToyCritic, kind="discriminator"),
    }
    made = build_stage(data=DataInfo(shape=(3,), count=9), models=models)
    found = {name: info.double_backward for name, info in made.build.models.items()}
    assert found == {"student": True, "once": False, "judge": True}


def test_a_model_may_be_built_for_the_pictures_that_latents_stand_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A judge of decoded images, and what it runs; others see the samples."""
    pictures = DataInfo(shape=(3, 4, 4), count=90)
    monkeypatch.setattr(TwoMoons, "pictures", property(lambda _: pictures))
    made = assemble(load_recipe(PLAYERS, overrides=["models.judge.sees=pictures"]))
    judge, student = (made.scene.roles[name].module for name in ("judge", "student"))
    assert judge.build.data == pictures
    assert judge.net[0].in_features == 48
    assert student.build.data.shape == made.build.data.shape == (2,)
    # Samples that are shown as they are, are the pictures.
    monkeypatch.undo()
    made = assemble(load_recipe(PLAYERS, overrides=["models.judge.sees=pictures"]))
    assert made.scene.roles["judge"].module.build.data.shape == (2,)
