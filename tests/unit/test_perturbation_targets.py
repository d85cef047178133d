"""The target of a moved view: in a search as in training, and in the gradient towards delta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_toys.networks import ToyNet
from torch import Tensor

from advdiff_core import Budget, DataInfo, Draws, Noised, Perturbation, Probe, Query, View
from advdiff_core.settings import setting, settings
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.step import TrainStep
from advdiff_core.testing.steps import Model, Moved, build_stage

DATA = DataInfo(shape=(3,), count=64)
POINTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
DELTA = 0.1 * torch.randn(8, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


class Fixed(Perturbation):
    """Moves by `DELTA`, and remembers what a probe there says of the base view."""

    @settings
    class Settings:
        """How the target behaves."""

        unit: str = setting("image", help="unit")
        follows: bool = setting(True, help="the target moves")
        target_gradient: bool = setting(True, help="the target is part of the gradient")

    def __init__(self, settings: Any, build: Any) -> None:
        super().__init__(settings, build)
        self.unit, self.follows = settings.unit, settings.follows
        self.target_gradient = settings.target_gradient
        self.probed: list[Noised] = []
        self.leaf = DELTA.clone().requires_grad_()

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """The view itself: what a loss term reads of it."""
        return (View(base),)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """Wide."""
        return Budget("linf", 1e6, self.unit)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """The constant."""
        self.probed.append(probe.at(self.leaf).get(View(probe.base)))
        return DELTA


def shot(**keys: Any) -> tuple[Fixed, TrainStep]:
    """The perturbation, after a step has moved its view."""
    view = Moved("clean", Fixed, Fixed.Settings(**keys))
    made = build_stage(data=DATA, models={"student": Model(ToyNet)}, views={"adv": view})
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("adv"),))
    step = made.step(Plan([phase], made.scene), POINTS)
    step.get(View("adv"))
    perturbation = made.scene.views["adv"].perturbation
    assert isinstance(perturbation, Fixed)
    return perturbation, step


@pytest.mark.parametrize("unit", ["image", "noise"])
@pytest.mark.parametrize("follows", [True, False])
def test_a_search_sees_the_target_that_training_will_see(unit: str, follows: bool) -> None:
    """Input and target of a probe are those of the perturbed view, bit for bit."""
    perturbation, step = shot(unit=unit, follows=follows)
    moved, probed = step.get(View("adv")), perturbation.probed[0]
    assert torch.equal(probed.x_t.detach(), moved.x_t)
    assert torch.equal(probed.eps.detach(), moved.eps)
    assert torch.equal(moved.eps, step.get(View("clean")).eps) is not follows


@pytest.mark.parametrize("target_gradient", [True, False])
def test_a_target_is_part_of_the_gradient_or_a_constant(target_gradient: bool) -> None:
    """Its slope with respect to delta is 1 / sigma, or nothing; its value is the same."""
    perturbation, step = shot(target_gradient=target_gradient)
    probed = perturbation.probed[0]
    assert probed.eps.requires_grad is target_gradient
    assert torch.equal(probed.eps.detach(), step.get(View("adv")).eps)
    if target_gradient:
        (slope,) = torch.autograd.grad(probed.eps.sum(), perturbation.leaf)
        torch.testing.assert_close(slope, (1 / probed.sigma).expand_as(slope))


@pytest.mark.parametrize("target_gradient", [True, False])
def test_a_free_delta_reaches_the_loss_through_its_target_if_it_may(target_gradient: bool) -> None:
    """As `apply` makes the view of a free perturbation, whose delta is a leaf."""
    perturbation, step = shot(target_gradient=target_gradient)
    radius = torch.full((8,), 1e6, dtype=torch.float64)
    leaf = DELTA.clone().requires_grad_()
    view = perturbation.apply(step.get(View("clean")), leaf, Budget("linf", radius), None)
    assert view.x_t.requires_grad
    assert view.eps.requires_grad is target_gradient
