"""A small classifier with an adversarial view, in float64."""

from __future__ import annotations

from typing import Any

import torch
from advdiff_toys.networks import ToyNet
from advdiff_toys.perturbations import ToyShift
from torch import Tensor

from advdiff_core import DataInfo, Domain, LossTerm, View
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.step import TrainStep
from advdiff_core.testing.steps import Model, Moved, Stage, StepResult, Turn, build_stage, run_step

CLASSES = 5
DATA = DataInfo(shape=(3,), count=64, classes=CLASSES, domain=Domain(-4.0, 4.0))
SHIFTED = Moved("image", ToyShift, ToyShift.Settings(norm="l2", radius=1.0))


def points(size: int = 12) -> Tensor:
    """Samples [size, 3] in float64."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def labels(size: int = 12) -> Tensor:
    """Labels [size]."""
    return torch.arange(size) % CLASSES


def classifier(**keys: Any) -> Model:
    """A classifier of few weights, in train mode."""
    settings = ToyNet.Settings(outputs=CLASSES, **keys)
    return Model(ToyNet, settings, parametrization="none", train=True)


def stage(model: Model | None = None, adv: Moved = SHIFTED, data: DataInfo = DATA) -> Stage:
    """A student and its adversarial view."""
    models = {"student": model or classifier()}
    return build_stage(data=data, models=models, views={"adv": adv})


def run(made: Stage, term: LossTerm, y: Tensor | None = None) -> StepResult:
    """One step of a term on the points."""
    turn = Turn("student", {"tested": term})
    return run_step(made, [turn], points(), labels() if y is None else y)


def logits_of(made: Stage) -> tuple[Tensor, Tensor]:
    """Logits of the clean and of the shifted points [12, K], by the network alone."""
    network = made.scene.roles["student"].module.double()
    adv = entered(made, points(), labels(), View("adv")).get(View("adv"))
    return network(points()).output, network(adv.x_t).output


def entered(made: Stage, x: Tensor, y: Tensor, *needs: Any, **place: Any) -> TrainStep:
    """A step on `x` [B, ...] in which the student trains on these queries."""
    phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
    step = made.step(Plan([phase], made.scene), x, y, **place)
    step.enter(phase, [])
    return step
