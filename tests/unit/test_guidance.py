"""Classifier-free guidance: told to networks that are made for it, else by a second evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from advdiff_core import ContractError, DataError, Prediction, RecipeError
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.evaluation import RunEvaluation
from advdiff_core.engine.generate import generate
from advdiff_core.engine.initial import load_init
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.schedules import VPLinear
from advdiff_core.step.network import guidance_told


def made(guidance: float, **model: Any) -> Experiment:
    """A small denoiser of two moons with random weights, none of them 0."""
    keys = {"use": "mlp", "width": 8, "conditional": True, **model}
    experiment = assemble(
        recipe_from_dict(
            {
                "run": {"images": 64, "batch": 32},
                "data": {"use": "two-moons", "count": 64},
                "models": {"student": keys},
                "sample": {"use": "ddim", "steps": 3, "ema": -1, "guidance": guidance},
            }
        )
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in experiment.scene.roles["student"].module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return experiment


def test_guided_predictions_are_the_same_in_every_form() -> None:
    """`cond + w (cond - uncond)` of eps, x0, v and flow, to rounding, one strength per sample."""
    noise = torch.Generator().manual_seed(1)
    x, one, two = torch.randn(3, 2, 5, generator=noise).double()
    schedule, t = VPLinear(VPLinear.Settings(), Build()), torch.tensor([0.3, 0.9]).double()
    scales = [scale(t)[:, None] for scale in (schedule.alpha, schedule.sigma)]
    w = torch.tensor([0.0, 7.5]).double()
    cond, uncond = (Prediction("eps", value, x, *scales) for value in (one, two))
    wanted = cond.guided(uncond, w)
    torch.testing.assert_close(wanted.eps, one + w[:, None] * (one - two))
    assert torch.equal(wanted.eps[0], one[0])
    for kind in ("x0", "v", "flow"):
        others = [Prediction(kind, p.to(kind), x, *scales) for p in (cond, uncond)]
        found = others[0].guided(others[1], w)
        torch.testing.assert_close(found.eps, wanted.eps, rtol=1e-9, atol=1e-9)


def test_a_plain_network_is_guided_by_a_second_evaluation() -> None:
    """Each step costs two evaluations, and their number says so; a strength of 0 costs one."""
    experiment = made(1.5)
    found = generate(experiment, range(5), batch=2)
    assert found.nfe == 6
    plain = generate(made(0.0), range(5), batch=2)
    assert plain.nfe == 3
    assert not torch.allclose(found.x0, plain.x0)
    role = experiment.scene.roles["student"]
    x, t, y = torch.ones(2, 2), torch.full((2,), 0.5), torch.tensor([0, 1])
    asked = RunEvaluation(experiment, Path()).denoiser(labels=y)(x, t)
    with torch.no_grad():
        cond, uncond = role.wear(role.module.eval(), x, t, y), role.wear(role.module, x, t, None)
    torch.testing.assert_close(asked.value, cond.value + 1.5 * (cond.value - uncond.value))


def test_a_guided_network_is_told_and_costs_one_evaluation() -> None:
    """The strength of the recipe arrives at the network."""
    experiment = made(1.5, guided=True)
    found, plain = generate(experiment, range(4)), generate(made(0.0, guided=True), range(4))
    assert (found.nfe, plain.nfe) == (3, 3)
    assert not torch.allclose(found.x0, plain.x0)
    role = experiment.scene.roles["student"]
    x, t, y = torch.ones(2, 2), torch.full((2,), 0.5), torch.tensor([0, 1])
    heard: list[Tensor | None] = []
    role.module.register_forward_pre_hook(
        lambda _, args, kwargs: heard.append(kwargs.get("guidance")), with_kwargs=True
    )
    RunEvaluation(experiment, Path()).denoiser(labels=y)(x, t)
    (told,) = heard
    assert told is not None
    assert told.tolist() == [1.5, 1.5]


def test_guidance_of_a_network_that_ignores_labels_is_refused() -> None:
    """R10 at `sample.guidance`."""
    with pytest.raises(RecipeError) as caught:
        made(2.0, conditional=False)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", "sample.guidance")
    assert fault.message == "2, but model 'student' ignores labels"
    assert fault.fix


def test_a_network_that_is_not_made_for_it_cannot_be_told() -> None:
    """A term that tells it anyway is refused, naming the model."""
    role = made(0.0).scene.roles["student"]
    with pytest.raises(ContractError, match="'student' cannot be told the strength of guidance"):
        guidance_told(role, torch.ones(2), torch.ones(2, 2))


def test_a_guided_network_starts_as_the_one_it_is_given(tmp_path: Path) -> None:
    """Weights of a plain network leave out what tells it the strength, which starts at zero."""
    plain = made(0.0).scene.roles["student"].module
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    fresh = made(0.0, guided=True).scene.roles["student"].module
    torch.nn.init.zeros_(fresh.get_parameter("condition.guidance.weight"))
    load_init(fresh, "student", tmp_path / "plain.safetensors", None)
    x, level, y = torch.ones(2, 2), torch.tensor([3.0, 700.0]), torch.tensor([0, 1])
    wanted = plain.eval()(x, level, y).output
    found = fresh.eval()(x, level, y, guidance=torch.tensor([2.0, 9.0])).output
    assert torch.equal(found, wanted)


def test_nothing_else_may_be_left_out(tmp_path: Path) -> None:
    """Any other missing tensor is refused as ever."""
    module = made(0.0, guided=True).scene.roles["student"].module
    state = {k: v for k, v in module.state_dict().items() if k != "norm_out.bias"}
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(DataError, match=r"missing: norm_out\.bias$|missing: norm_out\.bias "):
        load_init(module, "student", tmp_path / "short.safetensors", None)
