"""Attacks as the perturbation of a training view: what they cost, and what they find there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_attacks.eot import EOT
from advdiff_attacks.steps import PGD

from advdiff_core import Attack, Cost, DataInfo, Domain, Spec
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.terms import CrossEntropy
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step

wide_resnet = pytest.importorskip("advdiff_backbones.wide_resnet")

DATA = DataInfo(shape=(3, 16, 16), count=8, domain=Domain(0.0, 1.0), classes=10)


def spec(component: type[Attack], use: str, **keys: Any) -> Spec:
    """A nested attack."""
    settings = component.Settings(**keys)
    return Spec(kind="attack", use=use, settings=settings, component=component)


def stage(attack: Spec, **keys: Any) -> Stage:
    """A small wide resnet in train mode and its attacked view."""
    settings = wide_resnet.WideResNet.Settings(depth=10, width=1)
    net = Model(wide_resnet.WideResNet, settings, parametrization="none", train=True)
    view = Moved("image", AttackPerturbation, AttackPerturbation.Settings(attack=attack, **keys))
    return build_stage(data=DATA, models={"student": net}, views={"adv": view})


def run(made: Stage) -> Any:
    """One step of adversarial training."""
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    term = made.make(CrossEntropy, CrossEntropy.Settings(view="adv"))
    return run_step(made, [Turn("student", {"ce": term})], x, torch.arange(4))


def test_ten_steps_of_pgd_cost_ten_forwards_and_ten_input_backwards() -> None:
    """On the wide resnet, beside the training pass, as the plan says before the run."""
    result = run(stage(spec(PGD, "pgd", steps=10, keep="last")))
    assert result.counted["student"] == Cost(10 + 1, 10, 1)
    assert result.counted == result.planned


@pytest.mark.parametrize(
    ("attack", "cost"),
    [
        (spec(PGD, "pgd", steps=3), Cost(3 + 2 + 1, 3, 1)),
        (spec(PGD, "pgd", steps=3, restarts=2), Cost(2 * 4 + 1 + 1, 6, 1)),
        (spec(PGD, "pgd", steps=3, loss="kl", keep="last"), Cost(3 + 1 + 1, 3, 1)),
        (
            spec(EOT, "eot", samples=2, attack=spec(PGD, "pgd", steps=2, keep="last")),
            Cost(2 * (2 + 1) + 1, 4, 1),
        ),
    ],
    ids=["best", "restarts", "kl", "eot"],
)
def test_the_plan_foretells_what_an_attack_costs(attack: Spec, cost: Cost) -> None:
    """A best point, restarts, a clean prediction and draws are paid for, and announced."""
    result = run(stage(attack))
    assert result.counted["student"] == cost
    assert result.counted == result.planned


def test_statistics_and_modes_stay_through_a_search_in_train_mode() -> None:
    """Batch norm uses the batch's statistics and keeps its buffers for the training pass."""
    made = stage(spec(PGD, "pgd", steps=3, keep="last"))
    network = made.scene.roles["student"].module
    result = run(made)
    tracked = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.training and m.num_batches_tracked == 1 for m in tracked)
    assert all(p.requires_grad for p in network.parameters())
    assert set(result.grads) == {f"models.student.{n}" for n, _ in network.named_parameters()}
