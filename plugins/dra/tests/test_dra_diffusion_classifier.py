"""The encoder of a diffusion model as a classifier: it computes what the denoiser computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_targets import TEACHER, images, module, shake, tables
from torch import Tensor

from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.errors import RecipeError
from advdiff_core.recipe import recipe_from_dict

OUTER = ("parametrization", "frozen")
UNET = {"use": "unet", "channels": 8, "channel_mult": [1, 2], "blocks": 1}
NETWORKS = {
    "ddpmpp": ({k: v for k, v in TEACHER.items() if k not in OUTER}, "dec.4x4_in1"),
    "unet": (UNET, "mid.1"),
}


def recipe(denoiser: dict[str, Any], tap: str, **student: Any) -> dict[str, Any]:
    """The denoiser beside a student that has it inside."""
    found = tables()
    models = {
        "student": {"use": "diffusion-classifier", "parametrization": "none", "denoiser": denoiser,
                    "tap": tap, "sigma": 0.3, **student},
        "teacher": {**denoiser, "parametrization": "edm", "frozen": True},
    }  # fmt: skip
    player = {**found["players"]["student"], "terms": ["trades"]}
    terms = {"trades": found["terms"]["trades"]}
    return {**found, "models": models, "terms": terms, "players": {"student": player}}


def made(denoiser: dict[str, Any], tap: str, **student: Any) -> Experiment:
    """The objects of the recipe; the denoiser inside has the weights of that beside."""
    experiment = assemble(recipe_from_dict(recipe(denoiser, tap, **student)))
    shake(module(experiment, "teacher"), "teacher")
    weights = module(experiment, "teacher").state_dict()
    module(experiment, "student").denoiser.load_state_dict(weights)
    return experiment


def ours(experiment: Experiment, *taps: str) -> Any:
    """Output for six images in eval mode."""
    with torch.no_grad():
        return module(experiment, "student").eval()(images(), taps=taps)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("noise", ["fixed", "none"])
def test_it_reads_the_features_of_the_denoiser(name: str, noise: str) -> None:
    """The same scaling, and the same noise level, whatever range the network was made for."""
    denoiser, tap = NETWORKS[name]
    experiment = made(denoiser, tap, noise=noise)
    student, role = module(experiment, "student"), experiment.scene.roles["teacher"]
    x_t = images() + student.eps if noise == "fixed" else images()
    t = torch.full((6,), 0.3)
    with torch.no_grad():
        whole: Tensor = role.wear(role.module, x_t, t, None, taps=(tap,)).features[tap]
        logits = student.head(whole.mean((2, 3)))
    out = ours(experiment, tap, "pooled")
    torch.testing.assert_close(out.features[tap], whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.output, logits, rtol=1e-5, atol=1e-5)
    assert student.eps.std().item() == pytest.approx(0.3, rel=0.3)


def test_it_is_a_function_of_the_image() -> None:
    """Its noise is the same in each forward: attacks see the network that is evaluated."""
    experiment = made(*NETWORKS["unet"])
    assert torch.equal(ours(experiment).output, ours(experiment).output)


def test_nothing_after_the_tap_learns() -> None:
    """The decoder gets no gradient; the encoder and the linear layer do."""
    student = module(made(*NETWORKS["unet"]), "student")
    student(images()).output.square().sum().backward()
    touched = {n.split(".")[2] for n, p in student.named_parameters() if p.grad is not None
               and n.startswith("denoiser.blocks")}  # fmt: skip
    assert touched == {"0", "1", "2", "3"}
    assert student.head.weight.grad is not None


def test_it_trains_from_the_weights_of_a_run(tmp_path: Path) -> None:
    """A denoiser is trained, then its encoder adversarially; both by recipes."""
    denoiser, tap = NETWORKS["ddpmpp"]
    start = {
        "run": {"images": 16, "batch": 8, "device": "cpu", "precision": "fp32"},
        "data": {"use": "digits"}, "schedule": {"use": "edm"},
        "models": {"student": {**denoiser, "parametrization": "edm"}},
        "sample": {"use": "heun", "steps": 2, "images": 2},
    }  # fmt: skip
    run = train(recipe_from_dict(start), out=tmp_path).run
    told = recipe(denoiser, tap, weights=str(run))
    told["models"] = {"student": told["models"]["student"]}
    result = train(recipe_from_dict({**told, "run": {**told["run"], "images": 32}}), out=tmp_path)
    assert result.run.exists()


REFUSED = {
    "tap": (
        {"tap": "mid.9"}, "models.student.tap", r"model 'denoiser' has no tap 'mid\.9'; there are "
        r"down\.0\.0, .*", "did you mean",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_classifier_that_does_not_fit_is_refused_in_one_line(name: str) -> None:
    """With the key, what was found and wanted, and the mend."""
    keys, key, message, fix = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        assemble(recipe_from_dict(recipe(UNET, **{"tap": "mid.1", **keys})))
    (fault,) = caught.value.faults
    assert fault.key == key
    assert re.search(message, fault.message), fault.message
    assert re.search(fix, fault.fix), fault.fix
