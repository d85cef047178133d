"""Rules of a step: what it leaves untouched, what it refuses, and its mathematics by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_robustadv.perturbations import RayFGSM
from advdiff_robustadv.terms import Equivariance
from advdiff_robustadv.weights import rule_weight
from advdiff_toys.faults import RaisingSearch, Undeclared
from advdiff_toys.networks import ToyCritic, ToyNet, ToyTarget
from advdiff_toys.perturbations import ToyFree, ToyShift
from advdiff_toys.terms import ToyAlign
from attrs import evolve, frozen
from torch import Tensor, nn

from advdiff_core import (
    Budget,
    DataInfo,
    Delta,
    Draws,
    EpsHat,
    Features,
    Logits,
    LossTerm,
    Noised,
    Perturbation,
    Probe,
    Query,
    Scores,
    Step,
    Target,
    View,
    X0Hat,
)
from advdiff_core.errors import PluginError, RecipeError, UndeclaredQueryError
from advdiff_core.interfaces.query import Setup
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.scene import Compute
from advdiff_core.step.step import global_generator
from advdiff_core.step.values import detached
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)


def points(size: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    """Samples [size, 3]."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=dtype)


def stage(student: Model | None = None, **views: Moved) -> Stage:
    """A student, a frozen teacher, a judge and a target."""
    models = {
        "student": student or Model(ToyNet),
        "teacher": Model(ToyNet, frozen=True),
        "judge": Model(ToyCritic, kind="discriminator"),
        "target": Model(ToyTarget, kind="alignment_target", frozen=True),
    }
    return build_stage(data=DATA, models=models, views=views)


def plan_for(made: Stage, *queries: Query[Any]) -> Plan:
    """Plan of a student whose term needs these queries."""
    phase = Phase(player="student", roles=frozenset({"student"}), needs=queries)
    return Plan([phase], made.scene)


def test_a_search_leaves_flags_and_grads_alone() -> None:
    """Neither `requires_grad` nor `.grad` of any parameter is changed by computing a view."""
    made = stage(adv=Moved("clean", RayFGSM))
    network = made.scene.roles["student"].module.double()
    first, *others = network.parameters()
    first.requires_grad_(False)
    grads = [torch.full_like(parameter, 3.0) for parameter in others]
    for parameter, grad in zip(others, grads, strict=True):
        parameter.grad = grad
    step = made.step(plan_for(made, View("adv")), points())
    moved = step.get(View("adv"))
    assert not moved.x_t.requires_grad
    assert [p.requires_grad for p in network.parameters()] == [False] + [True] * len(others)
    assert first.grad is None
    for parameter, grad in zip(others, grads, strict=True):
        assert parameter.grad is grad
        assert bool((grad == 3.0).all())


def test_flags_are_restored_when_a_search_raises() -> None:
    """The error passes through, and the next forward trains as before."""
    student = Model(ToyNet, ToyNet.Settings(batch_norm=True), train=True)
    made = stage(student, adv=Moved("clean", RaisingSearch))
    network = made.scene.roles["student"].module.double()
    step = made.step(plan_for(made, View("adv"), EpsHat("student")), points())
    step.enter(Phase(player="student", roles=frozenset({"student"}), needs=()), [])
    with pytest.raises(RuntimeError, match="gave up"):
        step.get(View("adv"))
    assert all(parameter.requires_grad for parameter in network.parameters())
    norm = network.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.track_running_stats
    assert step.get(EpsHat("student")).requires_grad
    with pytest.raises(UndeclaredQueryError):
        step.get(Delta("adv"))


def test_probes_leave_batch_statistics_alone() -> None:
    """Running statistics see each trained forward once, whether a view is searched or not."""
    student = Model(ToyNet, ToyNet.Settings(batch_norm=True), train=True)
    plain, searched = stage(student), stage(student, adv=Moved("clean", RayFGSM))
    for made, queries in ((plain, ()), (searched, (View("adv"),))):
        network = made.scene.roles["student"].module.double()
        step = made.step(plan_for(made, EpsHat("student"), *queries), points())
        for query in (EpsHat("student"), *queries):
            step.get(query)
        norm = network.get_submodule("norm")
        assert isinstance(norm, nn.BatchNorm1d)
        # One norm serves both layers.
        assert norm.num_batches_tracked is not None
        assert int(norm.num_batches_tracked) == 2
    states = [made.scene.roles["student"].module.state_dict() for made in (plain, searched)]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])


def test_dropout_is_keyed_and_leaves_the_global_generator_alone() -> None:
    """All forwards of a step share their masks; another step has others."""
    student = Model(ToyNet, ToyNet.Settings(dropout=0.5), train=True)
    made = stage(student, zero=Moved("clean", ToyShift, ToyShift.Settings(radius=0.0)))
    made.scene.roles["student"].module.double()
    plan = plan_for(made, EpsHat("student"), EpsHat("student", "zero"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    step = made.step(plan, points())
    masked = step.get(EpsHat("student"))
    assert torch.equal(masked, step.get(EpsHat("student", "zero")))
    assert torch.equal(masked, made.step(plan, points()).get(EpsHat("student")))
    clean, other = made.step(plan, points()), made.step(plan, points(), index=1)
    noised = clean.get(View("clean"))
    other._memo[View("clean")] = noised
    assert not torch.equal(masked, other.get(EpsHat("student")))
    assert torch.equal(torch.get_rng_state(), before)
    assert global_generator(torch.device("cpu")) is torch.default_generator


def test_an_undeclared_query_is_named() -> None:
    """A term that asks for what no term declared is told so."""
    made = stage()
    term = made.make(Undeclared)
    with pytest.raises(
        UndeclaredQueryError, match=r"X0Hat\(role='student'.*not declared"
    ) as caught:
        run_step(made, [Turn("student", {"t": term})], points())
    assert caught.value.code == "P10"
    assert "needs" in caught.value.fix


@frozen
class _Sneaky(Query[Tensor]):
    """Reads a query that another term happens to declare."""

    def compute(self, step: Step) -> Tensor:
        return step.get(EpsHat("student"))


def test_a_query_may_ask_only_for_what_it_declared() -> None:
    """Whatever other terms declare: the plan would not know who depends on what."""
    made = stage()
    made.scene.roles["student"].module.double()
    step = made.step(plan_for(made, EpsHat("student"), _Sneaky()), points())
    step.get(EpsHat("student"))
    with pytest.raises(UndeclaredQueryError, match=r"asked for by _Sneaky\(\) but not declared"):
        step.get(_Sneaky())


class _Peeks(Perturbation):
    """Asks at a moved input for what it did not declare in `probes`."""

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        return (EpsHat("student", base),)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        return Budget("linf", 0.1)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        return probe.at(torch.zeros_like(noised.x_t)).get(EpsHat("student", probe.base))


def test_a_search_may_probe_only_what_it_declared() -> None:
    """The plan would count too few passes otherwise."""
    made = stage(adv=Moved("clean", _Peeks))
    made.scene.roles["student"].module.double()
    step = made.step(plan_for(made, View("adv")), points())
    with pytest.raises(UndeclaredQueryError) as caught:
        step.get(View("adv"))
    assert caught.value.fix == "list it in `probes`"


@frozen
class _Circle(Query[Tensor]):
    """Needs another of its kind, and that one it."""

    name: str

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        return (_Circle("b" if self.name == "a" else "a"),)

    def compute(self, step: Step) -> Tensor:
        return step.x0


def test_a_circle_of_queries_is_named() -> None:
    """The message walks around it."""
    with pytest.raises(
        PluginError, match=r"_Circle\(name='a'\) -> _Circle\(name='b'\) -> _Cir"
    ) as caught:
        plan_for(stage(), _Circle("a"))
    assert caught.value.code == "P10"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (EpsHat("studnet"), "'studnet'; the recipe has student, teacher, judge, target"),
        (EpsHat("student", "adv"), "'adv'; the recipe has clean, image"),
        (View("adv"), "'adv'; the recipe has clean, image"),
        (Features("student", "clean", "mid"), "no tap 'mid'; it has layer.0, layer.1"),
        (Features("judge", "clean", "mid"), "needs a backbone, but model 'judge' is a discrim"),
        (Scores("student"), "needs a discriminator, but model 'student' is a backbone"),
        (Target("student"), "needs a alignment_target, but model 'student' is a backbone"),
        (EpsHat("student", "image"), "needs a noised sample, but 'image' is a view of images"),
        (X0Hat("classifier"), "needs a denoiser, but model 'classifier' has no parametrization"),
    ],
)
def test_a_query_for_what_the_recipe_lacks_is_refused_with_what_there_is(
    query: Query[Any], words: str
) -> None:
    """Roles, views, taps and kinds are checked before anything runs."""
    made = stage()
    if "classifier" in repr(query):
        made = build_stage(data=DATA, models={"classifier": Model(ToyNet, parametrization="none")})
    with pytest.raises(RecipeError) as caught:
        plan_for(made, query)
    assert words in caught.value.faults[0].message
    assert caught.value.faults[0].code == "R10"
    assert caught.value.exit_code == 2


def test_an_edit_in_place_is_found() -> None:
    """Of any tensor of a value, whoever asked for it first; what a term asked for comes first."""
    made = stage()
    made.scene.roles["student"].module.double()
    step = made.step(plan_for(made, EpsHat("student"), View("clean")), points())
    step.get(EpsHat("student"))
    assert step.edited() == []
    with torch.no_grad():
        step.get(EpsHat("student")).add_(1.0)
    assert step.edited()[0] == EpsHat("student")
    assert View("clean") not in step.edited()
    step.get(View("clean")).x_t.mul_(2.0)
    assert View("clean") in step.edited()


def test_detached_keeps_the_shape_of_a_value() -> None:
    """Named tuples, lists and dicts stay what they are; tensors lose their graphs."""
    leaf = torch.ones(2, requires_grad=True)
    value = {"a": [leaf * 2, (leaf * 3, "word")], "b": Noised(leaf * 4, leaf * 5)}
    bare = detached(value)
    assert isinstance(bare["b"], Noised)
    assert not bare["a"][0].requires_grad
    assert bare["a"][1][1] == "word"
    assert torch.equal(bare["b"].x0, value["b"].x0)


def test_three_free_passes_equal_a_hand_written_loop() -> None:
    """FreeLB (Zhu et al., 2020): K ascents on delta, the mean of K gradients on the weights."""
    keys = ToyFree.Settings(norm="l2", radius=0.3, step=0.2)
    made = stage(adv=Moved("clean", ToyFree, keys))
    term = made.make(Denoise, Denoise.Settings(view="adv"))
    result = run_step(made, [Turn("student", {"denoise": term}, passes=3)], points())
    step = made.step(plan_for(made, View("clean")), points())
    noised, network = step.get(View("clean")), made.scene.roles["student"].module
    delta, total = torch.zeros_like(noised.x_t), {}
    for _ in range(3):
        delta.requires_grad_()
        eps_hat = network(noised.x_t + delta, 1000 * noised.t).output
        loss = (eps_hat - (noised.eps + delta / noised.sigma)).square().mean(1)
        grads = torch.autograd.grad(loss.mean(), [delta, *network.parameters()])
        for (name, _), grad in zip(network.named_parameters(), grads[1:], strict=True):
            total[name] = total.get(name, 0.0) + grad / 3
        ahead = delta.detach() + 0.2 * grads[0] / grads[0].norm(dim=1, keepdim=True)
        delta = ahead * (0.3 / ahead.norm(dim=1, keepdim=True)).clamp(max=1.0)
    torch.testing.assert_close(result.losses["denoise"], loss.detach(), rtol=1e-12, atol=1e-14)
    for name, grad in total.items():
        found = result.grads[f"models.student.{name}"]
        torch.testing.assert_close(found, grad, rtol=1e-11, atol=1e-14)


def test_a_step_equals_the_same_mathematics_written_by_hand() -> None:
    """Denoise + 0.3 equivariance on ray-fgsm, fused in a few lines of float64."""
    made = stage(adv=Moved("clean", RayFGSM))
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    turn = Turn("student", terms, weights={"equivariance": 0.3})
    result = run_step(made, [turn], points())
    step = made.step(made.plan([turn]), points())
    network = made.scene.roles["student"].module
    noised = step.get(View("clean"))
    x_t, t, sigma = noised.x_t, noised.t, noised.sigma
    radius = sigma.square() + 8 / 255
    start = radius * step.rng("view/adv").uniform((8, 3), -1.0, 1.0)
    start.requires_grad_()
    eps_hat = network(x_t, 1000 * t).output
    gap = (network(x_t + start, 1000 * t).output - eps_hat.detach()).square().sum()
    gradient = torch.autograd.grad(gap, start)[0]
    delta = (start.detach() + radius * gradient.sign()).clamp(-radius, radius)
    residual = network(x_t + delta, 1000 * t).output - eps_hat - delta / sigma
    factor = torch.minimum(3**0.5 / radius, 10 / 3 * (sigma / radius).square())
    equivariance = factor.flatten() * residual.square().mean(1)
    denoise = (eps_hat - noised.eps).square().mean(1)
    grads = torch.autograd.grad((denoise + 0.3 * equivariance).mean(), [*network.parameters()])
    torch.testing.assert_close(result.losses["denoise"], denoise.detach(), rtol=1e-12, atol=1e-14)
    found = result.losses["equivariance"]
    torch.testing.assert_close(found, equivariance.detach(), rtol=1e-12, atol=1e-14)
    for (name, _), grad in zip(network.named_parameters(), grads, strict=True):
        found = result.grads[f"models.student.{name}"]
        torch.testing.assert_close(found, grad, rtol=1e-12, atol=1e-14)
    weight = rule_weight(
        radius.flatten(), (radius / sigma).flatten(), rule="inverse-radius", w_max=10 / 3
    )
    torch.testing.assert_close(weight, factor.flatten(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_change_no_draw_and_no_loss_beyond_rounding(micro: int) -> None:
    """Draws are bitwise the same; matrix products of other heights round differently (1e-15)."""
    made = stage(adv=Moved("clean", RayFGSM, RayFGSM.Settings(bias="random")))
    terms = {
        "align": made.make(ToyAlign),
        "denoise": made.make(Denoise),
        "equivariance": made.make(Equivariance),
    }
    whole = run_step(made, [Turn("student", terms)], points())
    parts = run_step(made, [Turn("student", terms)], points(), micro=micro)
    for name, loss in whole.losses.items():
        torch.testing.assert_close(parts.losses[name], loss, rtol=1e-12, atol=1e-14)
    for name, grad in whole.grads.items():
        torch.testing.assert_close(parts.grads[name], grad, rtol=1e-11, atol=1e-14)


@frozen
class _Slope(Query[Tensor]):
    """Gradient of the judge's score towards the clean sample, with a graph (R1)."""

    def forwards(self, setup: Setup) -> dict[str, int]:
        return {"judge": 1}

    def input_backwards(self, setup: Setup) -> dict[str, int]:
        return {"judge": 1}

    def compute(self, step: Step) -> Tensor:
        x = step.x0.detach().requires_grad_()
        score = step.network("judge").score(x)
        return torch.autograd.grad(score.sum(), x, create_graph=True)[0]


class _R1(LossTerm):
    """Squared norm of that gradient (Mescheder et al., 2018)."""

    needs = (_Slope(),)

    def forward(self, step: Step) -> Tensor:
        return step.get(_Slope()).square().sum(1)


def test_a_gradient_penalty_is_counted_and_trains_its_network() -> None:
    """One input backward inside the query, one backward through both to the parameters."""
    made = stage()
    result = run_step(made, [Turn("judge", {"r1": made.make(_R1)})], points())
    assert result.counted["judge"] == Cost(1, 1, 1)
    assert result.counted == result.planned
    judge = made.scene.roles["judge"].module
    x = points().requires_grad_()
    slope = torch.autograd.grad(judge(x).sum(), x, create_graph=True)[0]
    slope.square().sum(1).mean().backward()
    for name, parameter in judge.named_parameters():
        # The last bias moves the score alone, not its slope.
        expected = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        found = result.grads.get(f"models.judge.{name}", torch.zeros_like(parameter))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@frozen
class _Curvature(Query[Tensor]):
    """How far eps_hat moves for a small move of the input, by way of a probe."""

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        return (View("clean"), EpsHat("student"))

    def forwards(self, setup: Setup) -> dict[str, int]:
        return {"student": 1}

    def compute(self, step: Step) -> Tensor:
        moved = step.at("clean", step.get(View("clean")).x_t + 0.1).get(EpsHat("student"))
        assert not moved.requires_grad
        return (moved - step.get(EpsHat("student"))).square().mean(1)


class _Curved(LossTerm):
    """That, as a loss."""

    needs = (_Curvature(),)

    def forward(self, step: Step) -> Tensor:
        return step.get(_Curvature())


def test_a_query_may_probe_the_step_at_another_input() -> None:
    """The probe is a constant, counted, and no memory of it is left."""
    made = stage()
    terms = {"curved": made.make(_Curved), "denoise": made.make(Denoise)}
    result = run_step(made, [Turn("student", terms)], points())
    assert result.counted["student"] == Cost(2, 0, 1)
    assert result.counted == result.planned
    alone = run_step(made, [Turn("student", {"denoise": terms["denoise"]})], points())
    assert torch.equal(alone.losses["denoise"], result.losses["denoise"])
    assert (result.losses["curved"] > 0).all()


def test_bfloat16_is_for_networks_alone() -> None:
    """Inputs, searches, conversions, features and losses stay in float32."""
    made = stage(adv=Moved("clean", RayFGSM))
    half = Stage(evolve(made.scene, compute=Compute(autocast=torch.bfloat16)), made.build)
    terms = {
        "align": made.make(ToyAlign),
        "denoise": made.make(Denoise),
        "equivariance": made.make(Equivariance),
    }
    x0 = points(dtype=torch.float32)
    exact = run_step(made, [Turn("student", terms)], x0)
    rough = run_step(half, [Turn("student", terms)], x0)
    for name, loss in rough.losses.items():
        assert loss.dtype == torch.float32
        assert not torch.equal(loss, exact.losses[name])
    torch.testing.assert_close(
        rough.losses["denoise"], exact.losses["denoise"], rtol=0.1, atol=0.02
    )
    assert rough.counted == exact.counted


def test_logits_take_role_and_view_by_position() -> None:
    """A redefined default does not reorder the fields."""
    assert Logits("student", "adv") == Logits(role="student", view="adv", through=False)
    assert Logits().view == "image"
