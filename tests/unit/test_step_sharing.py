"""Sharing in a step: forwards, taps, early stops, and what a plan foretells of them."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance
from advdiff_toys.networks import ToyNet, ToyTarget
from advdiff_toys.perturbations import ToyFree
from advdiff_toys.terms import ToyAlign, ToyImitate
from attrs import evolve
from torch import Tensor

from advdiff_core import (
    Budget,
    DataInfo,
    Draws,
    EpsHat,
    Features,
    Forward,
    LossTerm,
    Noised,
    Perturbation,
    Probe,
    Query,
    SearchCost,
    Step,
    View,
    X0Hat,
)
from advdiff_core.step.plan import Demand
from advdiff_core.step.step import TrainStep
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)


def points(size: int = 8) -> Tensor:
    """Samples [size, 3] in float64."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def stage(**views: Moved) -> Stage:
    """A student, a frozen teacher and an alignment target."""
    models = {
        "student": Model(ToyNet),
        "teacher": Model(ToyNet, frozen=True),
        "target": Model(ToyTarget, kind="alignment_target", frozen=True),
    }
    return build_stage(data=DATA, models=models, views=views)


def fgsm(**keys: object) -> Moved:
    """The view that `ray-fgsm` makes of the clean one."""
    return Moved("clean", RayFGSM, RayFGSM.Settings(**keys))


def align(made: Stage, tap: str) -> ToyAlign:
    """An alignment term at a tap."""
    return made.make(ToyAlign, ToyAlign.Settings(tap=tap), path=f"terms.{tap}")


def test_equal_queries_share_one_forward() -> None:
    """Three terms on the same view of the same model run it once."""
    made = stage()
    spaces = [Denoise.Settings(space=space) for space in ("eps", "x0", "v")]
    terms = {keys.space: made.make(Denoise, keys) for keys in spaces}
    result = run_step(made, [Turn("student", terms)], points())
    assert result.counted["student"] == Cost(1, 0, 1)
    assert result.counted == result.planned


def test_a_forward_returns_the_union_of_the_taps_asked_for() -> None:
    """Two alignment terms at two taps and a denoising loss run the student once."""
    made = stage()
    terms = {"a": align(made, "layer.1"), "b": align(made, "layer.0"), "c": made.make(Denoise)}
    turn = Turn("student", terms)
    demand = made.plan([turn]).demands[Forward("student", "clean")]
    assert demand == Demand(("layer.0", "layer.1"), None)
    result = run_step(made, [turn], points())
    assert result.counted["student"] == Cost(1, 0, 1)
    assert result.counted["target"] == Cost(1, 0, 0)
    assert result.counted == result.planned


def test_a_forward_stops_at_the_last_tap_when_nobody_asks_for_the_output() -> None:
    """No later layer runs, and the feature is the one of a full forward."""
    made = stage()
    turn = Turn("student", {"align": align(made, "layer.0")})
    plan = made.plan([turn])
    assert plan.demands[Forward("student", "clean")] == Demand(("layer.0",), "layer.0")
    early = run_step(made, [turn], points())
    network = made.scene.roles["student"].module
    assert isinstance(network, ToyNet)
    assert network.layers_run == 1
    whole = run_step(made, [Turn("student", {**turn.terms, "d": made.make(Denoise)})], points())
    assert torch.equal(early.losses["align"], whole.losses["align"])


ADV = Cost(3, 1, 1)


@pytest.mark.parametrize(
    ("view", "student"),
    [
        (fgsm(), ADV),
        (fgsm(steps=3), Cost(5, 3, 1)),
        (Moved("clean", RayRandom), Cost(2, 0, 1)),
    ],
)
def test_plan_foretells_the_cost_of_a_perturbed_view(view: Moved, student: Cost) -> None:
    """Denoise and equivariance on ray-fgsm cost exactly 3 forwards, 1 input and 1 full backward."""
    made = stage(adv=view)
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    result = run_step(made, [Turn("student", terms)], points())
    assert result.counted["student"] == student
    assert result.counted == result.planned


def test_plan_foretells_the_cost_of_a_chain_of_views() -> None:
    """A view made from a searched view is searched anew; each input is looked at once."""
    made = stage(adv=fgsm(), twice=Moved("adv", RayFGSM))
    keys = Equivariance.Settings(view="twice")
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance, keys)}
    result = run_step(made, [Turn("student", terms)], points())
    # Clean, probe of clean, adv, probe of adv, twice.
    assert result.counted["student"] == Cost(5, 2, 1)
    assert result.counted == result.planned


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("view", [fgsm(), Moved("clean", ToyFree), Moved("clean", RayRandom)])
def test_plan_foretells_the_cost_of_several_passes(view: Moved, moves: bool) -> None:
    """A pass computes again what its backward used up or moved, and nothing else."""
    made = stage(adv=view)
    terms = {
        "denoise": made.make(Denoise),
        "adv": made.make(Denoise, Denoise.Settings(view="adv")),
        "align": align(made, "layer.0"),
    }
    result = run_step(made, [Turn("student", terms, passes=3, moves=moves)], points())
    assert result.counted == result.planned
    assert result.counted["target"] == Cost(1, 0, 0)
    assert result.counted["student"].parameter_backwards == 3
    searches = 0 if view.component is not RayFGSM else 3 if moves else 1
    assert result.counted["student"].input_backwards == searches


def test_frozen_teacher_runs_without_gradient_unless_asked_to_let_it_through() -> None:
    """A teacher costs a forward; a gradient through it to a free view costs a backward."""
    made = stage(adv=Moved("clean", ToyFree))
    plain = made.make(ToyImitate, ToyImitate.Settings(view="adv", teacher_view="adv"))
    result = run_step(made, [Turn("student", {"imitate": plain}, passes=2)], points())
    assert result.counted["teacher"] == Cost(2, 0, 0)
    assert result.counted == result.planned

    class Through(LossTerm):
        """Reads the teacher on the free view, with gradient."""

        own, other = EpsHat("student", "adv"), EpsHat("teacher", "adv", through=True)
        needs = (own, other)

        def forward(self, step: Step) -> Tensor:
            return (step.get(self.own) - step.get(self.other)).square().mean(1)

    term = made.make(Through)
    result = run_step(made, [Turn("student", {"t": term}, passes=2)], points())
    assert result.counted["teacher"] == Cost(2, 2, 0)
    assert result.counted == result.planned
    assert not [name for name in result.grads if name.startswith("models.teacher")]


def test_losses_are_the_same_bits_in_every_order_of_terms() -> None:
    """Who asks first decides nothing; gradients agree to rounding of their sum."""
    made = stage(adv=fgsm())
    terms = {
        "denoise": made.make(Denoise),
        "equivariance": made.make(Equivariance),
        "align": align(made, "layer.1"),
    }
    x0 = points()
    results = [
        run_step(made, [Turn("student", {name: terms[name] for name in order})], x0)
        for order in itertools.permutations(terms)
    ]
    for result in results[1:]:
        assert result.counted == results[0].counted
        for name, loss in result.losses.items():
            assert torch.equal(loss, results[0].losses[name])
        assert set(result.grads) == set(results[0].grads)
        for name, grad in result.grads.items():
            torch.testing.assert_close(grad, results[0].grads[name], rtol=1e-14, atol=1e-16)


def test_gradients_are_the_same_bits_in_both_orders_of_two_terms() -> None:
    """Addition of two gradients commutes exactly."""
    made = stage(adv=fgsm())
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    first = run_step(made, [Turn("student", terms)], points())
    second = run_step(made, [Turn("student", dict(reversed(terms.items())))], points())
    for name, grad in first.grads.items():
        assert torch.equal(grad, second.grads[name])


def test_adding_a_term_or_view_leaves_other_losses_bit_identical() -> None:
    """Neither draws nor weights of the rest depend on it."""
    alone, more = stage(), stage(adv=fgsm(bias="random"), other=Moved("clean", RayRandom))
    x0 = points()
    before = run_step(alone, [Turn("student", {"denoise": alone.make(Denoise)})], x0)
    terms = {
        "align": align(more, "layer.0"),
        "other": more.make(Equivariance, Equivariance.Settings(view="other")),
        "equivariance": more.make(Equivariance),
        "denoise": more.make(Denoise),
    }
    after = run_step(more, [Turn("student", terms)], x0)
    assert torch.equal(before.losses["denoise"], after.losses["denoise"])
    without = {name: terms[name] for name in ("denoise", "equivariance")}
    again = run_step(more, [Turn("student", without)], x0)
    assert torch.equal(again.losses["equivariance"], after.losses["equivariance"])


def test_steps_and_their_graphs_are_freed_without_the_garbage_collector() -> None:
    """Nothing in a graph holds a step or a probe, so memory goes as soon as they do."""
    made = stage(adv=fgsm(steps=2), free=Moved("clean", ToyFree))
    terms = {
        "equivariance": made.make(Equivariance),
        "free": made.make(Denoise, Denoise.Settings(view="free")),
    }
    gc.collect()
    gc.disable()
    try:
        result = run_step(made, [Turn("student", terms, passes=2)], points())
        held = [thing for thing in gc.get_objects() if type(thing) is TrainStep]
        assert len(held) == len(result.steps)
        reference = weakref.ref(result.steps[0])
        del result, held
        assert reference() is None
    finally:
        gc.enable()


class _FreeFromFGSM(Perturbation):
    """Free, and starting from one step of a search."""

    free = True

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        return (EpsHat("student", base),)

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        return (EpsHat("student", base),)

    def cost(self) -> SearchCost:
        return SearchCost(1, 1)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        return Budget("linf", 0.1)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        delta = torch.zeros_like(noised.x_t).requires_grad_()
        gap = probe.at(delta).get(EpsHat("student", probe.base))
        gap = gap - probe.step.get(EpsHat("student", probe.base)) / 2
        return 0.1 * probe.gradient(gap.square().mean(1), delta).sign()

    def update(self, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        return delta + 0.1 * gradient.sign()


@pytest.mark.parametrize("moves", [False, True])
def test_a_free_view_is_searched_once_and_moves_on_from_there(moves: bool) -> None:
    """Later passes neither search nor read what the search needed."""
    made = stage(adv=Moved("clean", _FreeFromFGSM))
    term = made.make(Denoise, Denoise.Settings(view="adv"))
    result = run_step(made, [Turn("student", {"adv": term}, passes=3, moves=moves)], points())
    # Clean, probe and moved in the first pass, moved in the others.
    assert result.counted["student"] == Cost(5, 1, 3)
    assert result.counted == result.planned


@pytest.mark.parametrize("parametrization", ["eps", "v", "x0"])
def test_a_frozen_network_on_a_free_view_gives_no_gradient_by_itself(parametrization: str) -> None:
    """Not by way of the conversion between parametrizations either."""
    models = {
        "student": Model(ToyNet),
        "teacher": Model(ToyNet, parametrization=parametrization, frozen=True),
    }
    made = build_stage(data=DATA, models=models, views={"free": Moved("clean", ToyFree)})
    keys = ToyImitate.Settings(view="free", teacher_view="free")
    turn = Turn("student", {"imitate": made.make(ToyImitate, keys)})
    made.scene.roles["teacher"].module.double()
    step = made.step(made.plan([turn]), points())
    step.enter(turn.phase(), [])
    assert step.get(View("free")).x_t.requires_grad
    assert not step.get(EpsHat("teacher", "free")).requires_grad


def test_queries_of_the_same_forward_agree_with_the_prediction() -> None:
    """x0_hat, eps_hat and features read off one forward belong together."""
    made = stage()
    queries = (
        Forward(),
        EpsHat("student"),
        X0Hat("student"),
        Features("student", "clean", "layer.0"),
    )

    class Reads(LossTerm):
        """Asks for all of them."""

        needs = queries

        def forward(self, step: Step) -> Tensor:
            prediction, eps_hat, x0_hat, feature = (step.get(query) for query in queries)
            assert prediction.alpha is not None
            x_t = prediction.alpha * x0_hat + prediction.sigma * eps_hat
            torch.testing.assert_close(x_t, prediction.x_t, rtol=0, atol=1e-12)
            assert feature is prediction.features["layer.0"]
            return eps_hat.square().mean(1)

    result = run_step(made, [Turn("student", {"reads": made.make(Reads)})], points())
    assert result.counted["student"].forwards == 1


def test_sigma_data_and_parametrization_reach_the_terms() -> None:
    """An edm model of any sigma_data has loss 1 for a network that outputs 0, at unit data."""
    for sigma_data in (0.5, 2.0):
        model = Model(ToyNet, parametrization="edm", sigma_data=sigma_data)
        made = build_stage(data=DATA, models={"student": model})
        network = made.scene.roles["student"].module
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        x0 = sigma_data * torch.randn(4096, 3, generator=torch.Generator().manual_seed(1))
        denoise = made.make(Denoise)
        loss = run_step(made, [Turn("student", {"denoise": denoise})], x0).losses["denoise"]
        # EDM's weight makes the loss of the zero network 1 at every noise level.
        assert loss.mean().item() == pytest.approx(1.0, abs=0.05)


def test_stage_builds_the_same_weights_whatever_else_it_holds() -> None:
    """Initial weights are keyed by the place in the recipe."""
    alone = build_stage(data=DATA, models={"student": Model(ToyNet)})
    weights = alone.scene.roles["student"].module.state_dict()
    for name, tensor in stage().scene.roles["student"].module.state_dict().items():
        assert torch.equal(tensor, weights[name])
    other = build_stage(data=DATA, models={"student": Model(ToyNet)}, seed=1)
    assert not torch.equal(
        next(iter(other.scene.roles["student"].module.parameters())), next(iter(weights.values()))
    )
    assert evolve(alone.build, seed=1).seed == 1
