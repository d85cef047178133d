"""The toys that break do so when and how they say: fault tests build on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_toys.faults import (
    EditsInPlace,
    InfiniteGradient,
    NotANumber,
    RaisingHook,
    ScalarLoss,
)
from advdiff_toys.networks import ToyNet
from torch import Tensor

from advdiff_core import ContractError, DataInfo, LossTerm
from advdiff_core.engine.checks import check_term
from advdiff_core.testing.steps import Model, Stage, Turn, build_stage, run_step


def stage() -> Stage:
    """A student."""
    return build_stage(data=DataInfo(shape=(3,), count=8), models={"student": Model(ToyNet)})


def run(component: type[LossTerm], at: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of step `index` (4 images each) of a term that breaks at `at` images."""
    made = stage()
    term = made.make(component, component.Settings(at=at))
    result = run_step(made, [Turn("student", {"t": term})], torch.ones(4, 3), index=index)
    return result.losses["t"], result.grads


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_nan_toy_breaks_once_its_images_were_seen(index: int) -> None:
    """Zero before, NaN from then on."""
    loss, _ = run(NotANumber, 8, index)
    assert bool(loss.isnan().all()) is (index == 2)
    assert index == 2 or not loss.any()


@pytest.mark.parametrize("index", [0, 2])
def test_the_infinite_gradient_toy_has_a_finite_loss(index: int) -> None:
    """The loss is 0 all along; the gradient is finite before and infinite after."""
    loss, grads = run(InfiniteGradient, 8, index)
    assert not loss.any()
    finite = all(bool(grad.isfinite().all()) for grad in grads.values())
    assert finite is (index == 0)
    assert index == 0 or any(bool(grad.isinf().any()) for grad in grads.values())


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (ScalarLoss, r"returned shape \[\], wanted one loss per sample \[4\]"),
        (EditsInPlace, "edited the value of EpsHat"),
    ],
)
def test_the_engine_names_a_term_that_breaks_its_contract(
    component: type[LossTerm], words: str
) -> None:
    """Shape and edits in place are checked in the first steps of a run."""
    made = stage()
    term = made.make(component)
    turn = Turn("student", {"t": term})
    step = made.step(made.plan([turn]), torch.ones(4, 3))
    step.enter(turn.phase(), [])
    with pytest.raises(ContractError, match=words) as caught:
        check_term("t", term, step)
    assert caught.value.code == "P10"


def test_the_raising_hook_raises_on_the_events_it_is_told() -> None:
    """And is quiet otherwise: it is installed with every test."""
    hook: Any = RaisingHook()
    hook.run_started()
    hook.configured(options={"events": ["run_started"]})
    hook.metrics_logged()
    with pytest.raises(RuntimeError, match="run_started"):
        hook.run_started()
