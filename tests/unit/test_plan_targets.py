"""Values of target networks in a plan: stale as soon as the role that they follow has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from advdiff_toys.networks import ToyNet
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core import Build, DataInfo, EpsHat, LossTerm, Query, Setup, Step, View
from advdiff_core.testing.steps import Model, Turn, build_stage, run_step


@frozen
class Known(Query[Tensor]):
    """Prediction [B, ...] of another role, without gradient."""

    role: str
    detached: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The noised sample."""
        del setup
        return (View("clean"),)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward of the role."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run it."""
        noised = step.get(View("clean"))
        assert noised.t is not None
        return step.network(self.role).denoise(noised.x_t, noised.t).eps


class Near(LossTerm):
    """Distance of the student to a frozen teacher and to a target network."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.needs = (EpsHat("student"), Known("teacher"), Known("target"))

    def forward(self, step: Step) -> Tensor:
        """Mean square of both [B]."""
        own, *others = (step.get(query) for query in self.needs)
        return sum((own - other).square().flatten(1).mean(1) for other in others)


@pytest.mark.parametrize(("moves", "wanted"), [(True, 3), (False, 1)])
def test_a_target_network_runs_again_once_its_role_has_moved(moves: bool, wanted: int) -> None:
    """Three passes that move the weights run it three times; a frozen teacher runs once."""
    models = {
        "student": Model(ToyNet), "target": Model(ToyNet, frozen=True),
        "teacher": Model(ToyNet, frozen=True),
    }  # fmt: skip
    stage = build_stage(data=DataInfo(shape=(2,), count=9), models=models)
    target = stage.scene.roles["target"]
    target.info = evolve(target.info, follows="student")
    turn = Turn("student", {"near": stage.make(Near)}, passes=3, moves=moves)
    result = run_step(stage, [turn], torch.ones(4, 2))
    assert result.counted == result.planned
    assert result.counted["target"].forwards == wanted
    assert result.counted["teacher"].forwards == 1
