"""Budgets that a network shapes, networks that are told the noise level, queries that probe."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from advdiff_toys.networks import ToyNet
from attrs import frozen
from torch import Tensor

from advdiff_core import (
    Budget,
    DataInfo,
    Draws,
    EpsHat,
    LossTerm,
    Noised,
    Perturbation,
    Probe,
    Query,
    Step,
    View,
)
from advdiff_core.interfaces.query import Setup
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)
POINTS = torch.randn(8, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@frozen
class Size(Query[Tensor]):
    """A positive number per sample [B] from a network that is told the time."""

    view: str = "clean"
    role: str = "size"

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The view."""
        return (View(self.view),)

    def forwards(self, setup: Setup) -> dict[str, int]:
        """One."""
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Its one output, squared."""
        noised = step.get(View(self.view))
        network = step.network(self.role)
        return network.classify(noised.x_t, c_noise=1000 * noised.t).value.square().flatten()


class Shaped(Perturbation):
    """A box as wide as the network says."""

    graphs: ClassVar[list[bool]] = []

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """What the budget reads."""
        return (Size(base),)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """Without the network."""
        return Budget("linf", 0.0)

    def budget_at(self, noised: Noised, probe: Probe, rng: Draws) -> Budget:
        """With it."""
        radius = probe.step.get(Size(probe.base))
        self.graphs.append(radius.requires_grad)
        return Budget("linf", radius)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Beyond every box."""
        return torch.full_like(noised.x_t, 1e6)


@frozen
class Moving(Query[Tensor]):
    """Predicted noise where the input is moved by the size [B, ...], the denoiser frozen."""

    probing: ClassVar[bool] = True

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """What it is made of."""
        return (View("clean"), Size(), EpsHat())

    def forwards(self, setup: Setup) -> dict[str, int]:
        """One of the denoiser."""
        return {"student": 1}

    def compute(self, step: Step) -> Tensor:
        """Probe the step."""
        x_t = step.get(View("clean")).x_t + step.get(Size())[:, None]
        return step.at("clean", x_t).get(EpsHat()) - step.get(EpsHat()).detach()


class Grow(LossTerm):
    """Trains the size on the denoiser's answer."""

    def __init__(self, settings: Any, build: Any) -> None:
        super().__init__(settings, build)
        self.needs = (Moving(),)

    def forward(self, step: Step) -> Tensor:
        """The answer's square."""
        return step.get(Moving()).square().flatten(1).mean(1)


def stage(**views: Moved) -> Stage:
    """A denoiser, and a network of one output that is none."""
    sizes = Model(ToyNet, ToyNet.Settings(outputs=1), parametrization="none")
    return build_stage(data=DATA, models={"student": Model(ToyNet), "size": sizes}, views=views)


def test_a_budget_reads_a_network_without_its_graph() -> None:
    """The radius is what the network says of the sample and its noise level."""
    made = stage(adv=Moved("clean", Shaped))
    module = made.scene.roles["size"].module.double()
    needs = (View("clean"), View("adv"))
    plan = Plan([Phase(player="size", roles=frozenset({"size"}), needs=needs)], made.scene)
    step = made.step(plan, POINTS)
    step.enter(plan.phases[0], [])
    Shaped.graphs.clear()
    clean, moved = (step.get(query) for query in needs)
    expected = module(clean.x_t, 1000 * clean.t).output.square().flatten()
    torch.testing.assert_close(moved.radius, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(moved.delta, moved.radius[:, None].expand_as(moved.delta))
    assert Shaped.graphs == [False]
    without = module(clean.x_t, None).output.square().flatten()
    assert not torch.allclose(expected, without)


def test_a_probing_query_passes_gradients_to_inputs_alone() -> None:
    """Also while the player at hand trains the network it probes; passes are as planned."""
    made = stage()
    grow, denoise = {"grow": made.make(Grow)}, {"denoise": made.make(Denoise)}
    alone = run_step(made, [Turn("student", denoise)], POINTS)
    for turns in (
        [Turn("both", {**grow, **denoise}, models=("student", "size"))],
        [Turn("size", grow), Turn("student", denoise)],
    ):
        found = run_step(made, turns, POINTS)
        assert found.counted == found.planned
        assert found.counted == {"student": Cost(2, 1, 1), "size": Cost(1, 0, 1)}
        for name, grad in alone.grads.items():
            assert torch.equal(found.grads[name], grad)
        assert any(name.startswith("models.size") for name in found.grads)
