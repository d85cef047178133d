"""Frozen roles as alignment targets run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_toys.networks import ToyNet, ToyTarget

from advdiff_core.backbones.mlp import MLP
from advdiff_core.engine import trained
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.trained import trained_on
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import loads_recipe, recipe_from_dict
from advdiff_core.testing import Model, build_stage
from advdiff_core.types import DataInfo, Domain

RECIPE = """
[data]
use = "two-moons"
[models.target]
use = "toy-target"
kind = "alignment_target"
[models.student]
use = "mlp"
[models.teacher]
use = "mlp"
parametrization = "edm"
frozen = true
[models.shadow]
use = "mlp"
follow = { role = "student" }
[terms.denoise]
use = "denoise"
[players.student]
terms = ["denoise"]
"""


PICTURES: dict[str, Any] = {
    "run": {"images": 16, "batch": 8, "device": "cpu"},
    "data": {"use": "digits", "domain": [0.0, 1.0]},
    "models": {"student": {"use": "mlp", "width": 8}},
    "terms": {"denoise": {"use": "denoise"}},
    "sample": {"steps": 2, "images": 2},
}


def experiment() -> Any:
    """A run with one frozen backbone, one trained, one that follows, and a target before them."""
    return assemble(loads_recipe(RECIPE))


def test_a_target_is_told_of_roles_that_come_after_it_in_the_file() -> None:
    """The order of a recipe never matters: targets are built last."""
    made = experiment()
    target: Any = made.scene.roles["target"].module
    assert set(target.build.models) == {"student", "teacher", "shadow"}


def test_only_backbones_whose_weights_never_change_are_handed_out() -> None:
    """A network that is trained, or that averages one, goes through the step's own rules."""
    made = experiment()
    assert set(made.build.networks) == {"teacher"}
    for role, what in (("student", "is trained"), ("target", "is no"), ("nobody", "is no")):
        with pytest.raises(RecipeError, match=f"'{role}' {what}"):
            made.build.network(role, key="teacher")


def test_a_frozen_network_denoises_as_the_step_does() -> None:
    """Same scaling, noise input and meaning of the output; no graph, even from a leaf."""
    made = experiment()
    role, network = made.scene.roles["teacher"], made.build.network("teacher", key="teacher")
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.linspace(0.1, 0.9, 5)
    found = network.denoise(x, t, taps=tuple(role.info.taps))
    wanted = role.wear(role.module, x, t, taps=tuple(role.info.taps))
    assert torch.equal(found.x0, wanted.x0)
    assert found.features.keys() == wanted.features.keys() == role.info.taps.keys()
    assert not found.x0.requires_grad
    assert network.info is role.info
    assert network.trained_on is None


def test_a_stage_hands_them_out_like_a_run() -> None:
    """So that targets can be tested without an engine."""
    models = {
        "target": Model(ToyTarget, kind="alignment_target", frozen=True),
        "teacher": Model(MLP, frozen=True),
        "classifier": Model(MLP, parametrization="none", frozen=True),
        "student": Model(MLP),
    }
    stage = build_stage(data=DataInfo(shape=(2,), count=9), models=models)
    assert set(stage.build.networks) == {"teacher", "classifier"}
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    role = stage.scene.roles["classifier"]
    found = stage.build.network("classifier", key="role").classify(x)
    assert torch.equal(found.value, role.module(x).output)


def test_gradients_pass_through_a_frozen_classifier_where_asked() -> None:
    """They equal the network's own; the weights get none, and without asking there is no graph."""
    settings = ToyNet.Settings(outputs=3)
    models = {"classifier": Model(ToyNet, settings, parametrization="none", frozen=True)}
    stage = build_stage(data=DataInfo(shape=(2,), count=9), models=models)
    network = stage.build.network("classifier", key="role")
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert not network.classify(x).value.requires_grad
    with torch.no_grad():
        assert not network.classify(x, through=True).value.requires_grad
    (found,) = torch.autograd.grad(network.classify(x, through=True).value.sum(), x)
    module = stage.scene.roles["classifier"].module
    (wanted,) = torch.autograd.grad(module(x).output.sum(), x)
    assert torch.equal(found, wanted)
    assert bool(found.abs().sum() > 0)
    assert all(p.grad is None for p in module.parameters())


def test_a_frozen_network_knows_what_its_weights_were_trained_on(tmp_path: Path) -> None:
    """Shape, range and classes are with the checkpoints of a run; a bare file says nothing."""
    run = train(recipe_from_dict(PICTURES), out=tmp_path).run
    wanted = DataInfo(shape=(1, 8, 8), count=0, domain=Domain(0.0, 1.0), classes=10)
    assert trained_on(run) == wanted
    assert trained_on(next((run / "checkpoints").iterdir())) == wanted
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    assert trained_on(file) is None
    teacher = {**PICTURES["models"]["student"], "frozen": True, "init": str(run)}
    models = {**PICTURES["models"], "teacher": teacher}
    made = assemble(recipe_from_dict({**PICTURES, "models": models}))
    assert made.build.networks["teacher"].trained_on == wanted


def test_checkpoints_of_before_say_nothing_of_their_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken as they are."""
    run = train(recipe_from_dict(PICTURES), out=tmp_path).run
    old = {"shared": {}, "ranks": [], "meta": {"provenance": {}}}
    monkeypatch.setattr(trained, "read_state", lambda path, manifest: old)
    assert trained_on(run) is None


def test_a_build_without_networks_names_the_mend() -> None:
    """One line with the key, and what to write."""
    with pytest.raises(RecipeError) as caught:
        Build(path="models.target").network("teacher", key="teacher")
    assert str(caught.value.faults[0].key) == "models.target.teacher"
    assert "frozen = true in models.teacher" in caught.value.faults[0].fix
