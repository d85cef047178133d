"""Frozen roles as alignment targets run them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_toys.networks import ToyTarget

from advdiff_core.backbones.mlp import MLP
from advdiff_core.engine.assemble import assemble
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import loads_recipe
from advdiff_core.testing import Model, build_stage
from advdiff_core.types import DataInfo

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


def test_a_build_without_networks_names_the_mend() -> None:
    """One line with the key, and what to write."""
    with pytest.raises(RecipeError) as caught:
        Build(path="models.target").network("teacher", key="teacher")
    assert str(caught.value.faults[0].key) == "models.target.teacher"
    assert "frozen = true in models.teacher" in caught.value.faults[0].fix
