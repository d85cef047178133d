"""Whole runs of two players: what stays, what goes on after a stop, and what is refused before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.checkpoint import load
from advdiff_core.engine.manifest import newest_valid
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.errors import DataError, RecipeError
from advdiff_core.recipe import loads_recipe

pytest.importorskip("advdiff_backbones")
pytest.importorskip("advdiff_datasets")
timm = pytest.importorskip("timm")

RECIPE = """
[run]
images = 48
batch = 8
checkpoint_every = 24
threads = 1
device = "cpu"
[data]
use = "digits"
[models.student]
use = "unet"
channels = 8
channel_mult = [1]
blocks = 1
[models.encoder]
use = "timm:test_vit"
image_size = 32
patch_size = 8
parametrization = "none"
frozen = true
[models.discriminator]
use = "siamese"
kind = "discriminator"
width = 8
hidden = 8
[terms.adversarial]
use = "adversarial"
sampler = { use = "ddim", steps = 3 }
gradient_steps = 2
[terms.denoise]
use = "denoise"
weight = 0.5
[terms.discriminate]
use = "discriminate"
[players.discriminator]
terms = ["discriminate"]
optimizer = { use = "adamw", lr = 1e-2 }
[players.student]
terms = ["adversarial", "denoise"]
optimizer = { use = "adamw", lr = 1e-3 }
every = 2
[sample]
use = "ddim"
steps = 2
images = 2
"""


def state(run: Path) -> dict[str, Any]:
    """What the newest checkpoint of a run holds."""
    path, _ = newest_valid(run / "checkpoints")
    assert path is not None
    return load(path).shared


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested tables."""
    if isinstance(tree, dict):
        return {k: v for key, one in tree.items() for k, v in flat(one, f"{name}.{key}").items()}
    if isinstance(tree, list):
        return flat(dict(enumerate(tree)), name)
    return {name: tree}


def test_a_stopped_run_goes_on_with_the_same_bits_and_leaves_the_frozen_network(
    tmp_path: Path,
) -> None:
    """Twins and norms' vectors are kept; the encoder's bytes are those it began with."""
    before = assemble(loads_recipe(RECIPE)).scene.roles["encoder"].module.state_dict()
    whole = train(loads_recipe(RECIPE), out=tmp_path / "whole")
    part = train(loads_recipe(RECIPE, overrides=["run.images=24"]), out=tmp_path / "part")
    train(loads_recipe(RECIPE), resume=part.run)
    a, b = flat(state(whole.run)), flat(state(part.run))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, b[name]), name
    for name, value in before.items():
        assert torch.equal(a[f".models.encoder.{name}"], value), name
    heads = [name for name in a if name.startswith(".models.discriminator.heads")]
    assert len([name for name in heads if name.endswith("original")]) == 12
    for name in heads:
        assert not torch.equal(a[name], a[name.replace(".heads.", ".twins.")]), name


JUDGES = {
    "projected": ["depths=2", "conditional=true"],
    "patch": ["channels=8", "layers=2"],
    "conditional": ["channels=8", "norm=true"],
}


@pytest.mark.parametrize("judge", JUDGES)
def test_other_discriminators_train_in_the_same_recipe(judge: str, tmp_path: Path) -> None:
    """With a penalty on the gradient, logistic losses and labels; both players move."""
    keys = [
        "run.images=16", "run.checkpoint_every=16", "models.discriminator={}", "terms.r1.use=r1",
        f"models.discriminator.use={judge}", "models.discriminator.kind=discriminator",
        *(f"models.discriminator.{key}" for key in JUDGES[judge]),
        'players.discriminator.terms=["discriminate", "r1"]', "terms.adversarial.loss=logistic",
        "models.encoder.attention_kernel=math",
    ]  # fmt: skip
    recipe = loads_recipe(RECIPE, overrides=keys)
    before = assemble(recipe).scene.roles
    after = flat(state(train(recipe, out=tmp_path).run))
    still = [
        f"{name}.{key}"
        for name in ("discriminator", "student")
        for key, value in before[name].module.named_parameters()
        if torch.equal(after[f".models.{name}.{key}"], value)
    ]
    assert not [key for key in still if key.startswith("discriminator")]
    # Its last layer begins at zero: the first update is of that alone.
    assert any(key.startswith("student") for key in still)
    assert "student.conv_out.weight" not in still


def test_the_plan_of_the_recipe_counts_both_players() -> None:
    """Three forwards of the path in each step, one more where the student acts."""
    report = plan_experiment(assemble(loads_recipe(RECIPE)))
    assert report.step.roles["student"].forwards == 4
    assert report.step.roles["discriminator"].forwards == 3
    assert report.average["student"][0] == 3.5


@pytest.mark.parametrize("kernel", ["fused", "math"])
def test_r1_over_the_attention_of_a_transformer(kernel: str) -> None:
    """Refused with the key to write, and then it runs."""
    keys = [
        "terms.r1.use=r1", 'players.discriminator.terms=["discriminate", "r1"]',
        f"models.encoder.attention_kernel={kernel}",
    ]  # fmt: skip
    recipe = loads_recipe(RECIPE, overrides=keys)
    if kernel == "math":
        made: Any = assemble(recipe)
        assert made.build.models["discriminator"].double_backward
        return
    with pytest.raises(RecipeError) as caught:
        assemble(recipe)
    (fault,) = caught.value.faults
    assert fault.key == "terms.r1.of"
    assert 'attention_kernel = "math" and compile = false in models.encoder' in fault.fix


def test_missing_weights_of_dinov2_say_where_to_put_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The paper's network, without a connection and with an empty cache: one line."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    keys = [
        "models.encoder.use=timm:vit_small_patch14_dinov2.lvd142m",
        "models.encoder.pretrained=true", "models.encoder.image_size=28",
        "models.encoder.patch_size=14",
    ]  # fmt: skip
    with pytest.raises(DataError) as caught:
        assemble(loads_recipe(RECIPE, overrides=keys))
    (line,) = caught.value.lines()
    assert "models.encoder" in line
    assert "no weights for timm:vit_small_patch14_dinov2.lvd142m" in line
    assert "timm/vit_small_patch14_dinov2.lvd142m" in line
    assert 'write weights = "FILE.safetensors"' in line


def test_a_term_that_is_not_there_is_found_before_the_run() -> None:
    """A reference to a term is checked like one to a model."""
    with pytest.raises(RecipeError, match="there is no term 'adversary'") as caught:
        loads_recipe(RECIPE, overrides=["terms.discriminate.of=adversary"])
    assert caught.value.faults[0].fix == "did you mean 'adversarial'?"
