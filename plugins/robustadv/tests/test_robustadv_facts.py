"""The mathematics of Robust_adv in float64: facts (a) to (g), whatever the paper meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from advdiff_robustadv.perturbations import RayFGSM, RayRandom
from advdiff_robustadv.terms import Equivariance, Invariance
from advdiff_robustadv.weights import rule_weight
from torch import Tensor, nn

from advdiff_core import (
    Backbone,
    BackboneOutput,
    Build,
    DataInfo,
    EpsHat,
    LossTerm,
    Noised,
    NoiseSchedule,
    TapInfo,
    View,
)
from advdiff_core.backbones.mlp import MLP
from advdiff_core.errors import RecipeError
from advdiff_core.schedules import VE, Flow, VPLinear
from advdiff_core.settings import setting, settings
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)
UNITS = ["image", "noise"]


class _Exact(Backbone):
    """Knows the one clean sample c: eps_hat = (x_t - alpha c) / sigma is exactly equivariant."""

    @settings
    class Settings:
        """The sample."""

        c: float = setting(0.3, help="every coordinate of the clean sample")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.c = nn.Parameter(torch.tensor(float(settings.c)))

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        return {}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        schedule = self.build.schedule
        assert schedule is not None
        assert c_noise is not None
        t = (c_noise / 1000)[:, None]
        return BackboneOutput((x - schedule.alpha(t) * self.c) / schedule.sigma(t), {})


class _Linear(Backbone):
    """eps_hat = A x_t, whatever the noise level."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.layer = nn.Linear(3, 3)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        return {}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        return BackboneOutput(self.layer(x), {})


def points(size: int = 32) -> Tensor:
    """Samples [size, 3] in float64."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def perceptron(parametrization: str = "eps") -> Model:
    """A small MLP with weights away from zero (its last layer starts there)."""
    return Model(MLP, MLP.Settings(width=16, blocks=1), parametrization=parametrization)


def stage(
    model: Model, view: Moved | None = None, schedule: type[NoiseSchedule] = VPLinear, seed: int = 0
) -> Stage:
    """One student, perhaps one perturbed view."""
    made = schedule(schedule.Settings(), build_stage(data=DATA, models={}).build)
    views = {"adv": view} if view is not None else {}
    whole = build_stage(data=DATA, models={"student": model}, views=views, schedule=made, seed=seed)
    network = whole.scene.roles["student"].module.double()
    if isinstance(network, MLP):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(0.3 * noise)
    return whole


def views_of(made: Stage) -> tuple[Noised, Noised]:
    """The clean view and the perturbed one."""
    needs = (View("clean"), View("adv"))
    phase = Phase(player="student", roles=frozenset({"student"}), needs=needs)
    step = made.step(Plan([phase], made.scene), points())
    return step.get(needs[0]), step.get(needs[1])


def fgsm(**keys: Any) -> Moved:
    """The clean view moved by `ray-fgsm`."""
    return Moved("clean", RayFGSM, RayFGSM.Settings(**keys))


def loss_of(made: Stage, component: type[LossTerm], **keys: Any) -> Tensor:
    """Loss of each sample [B] of a regulariser on the view `adv`."""
    term = made.make(component, component.Settings(**keys))
    return run_step(made, [Turn("student", {"term": term})], points()).losses["term"]


def eps_hat(made: Stage, noised: Noised, x_t: Tensor) -> Tensor:
    """The student's prediction at another input."""
    wear, module = made.scene.roles["student"].wear, made.scene.roles["student"].module
    value: Tensor = wear(module, x_t, noised.t).eps
    return value


@pytest.mark.parametrize("schedule", [VPLinear, VE, Flow])
@pytest.mark.parametrize("unit", UNITS)
def test_a_moving_input_and_noise_together_leaves_the_clean_sample(
    unit: str, schedule: type[NoiseSchedule]
) -> None:
    """(a) The displacement is extra noise: x0 = (x_t - sigma eps) / alpha does not change."""
    clean, adv = views_of(stage(perceptron(), fgsm(unit=unit), schedule))
    assert (adv.x_t - clean.x_t).abs().max() > 1e-3
    recovered = (adv.x_t - adv.sigma * adv.eps) / adv.alpha
    torch.testing.assert_close(recovered, clean.x0, rtol=0, atol=1e-10)


def test_a_literal_shift_moves_the_clean_sample() -> None:
    """(a) Moving the target by delta itself moves x0 by delta (1 - sigma) / alpha."""
    clean, adv = views_of(stage(perceptron(), fgsm()))
    assert adv.delta is not None
    moved = (adv.x_t - clean.sigma * (clean.eps + adv.delta)) / clean.alpha
    expected = adv.delta * (1 - clean.sigma) / clean.alpha
    torch.testing.assert_close(moved - clean.x0, expected, rtol=1e-9, atol=1e-12)


def test_b_the_gap_has_no_gradient_at_zero() -> None:
    """(b) So the random start is compulsory."""
    made = stage(perceptron(), fgsm())
    clean, _ = views_of(made)
    reference = eps_hat(made, clean, clean.x_t).detach()
    for size, flat in ((0.0, True), (0.1, False)):
        delta = torch.full_like(clean.x_t, size).requires_grad_()
        gap = (eps_hat(made, clean, clean.x_t + delta) - reference).square().sum()
        (gradient,) = torch.autograd.grad(gap, delta)
        assert bool((gradient == 0).all()) is flat


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("step_scale", [0.5, 1.0, 1.25, 5.0])
@pytest.mark.parametrize("unit", UNITS)
def test_c_delta_stays_in_the_box(unit: str, step_scale: float, steps: int) -> None:
    """(c) And with steps of twice the radius or more every entry ends on its boundary."""
    made = stage(perceptron(), fgsm(unit=unit, steps=steps, step_scale=step_scale))
    clean, adv = views_of(made)
    assert adv.delta is not None
    assert adv.radius is not None
    delta = adv.delta / (clean.sigma if unit == "noise" else 1.0)
    limit = adv.radius[:, None]
    assert (delta.abs() <= limit * (1 + 1e-12)).all()
    if step_scale >= 2:
        torch.testing.assert_close(delta.abs(), limit.expand_as(delta), rtol=1e-9, atol=0)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("model", [Model(_Exact), Model(MLP, parametrization="x0")])
def test_d_an_exactly_equivariant_predictor_has_no_equivariance_loss(
    model: Model, unit: str
) -> None:
    """(d) And its invariance loss is the mean of (delta / sigma)^2; so in any parametrization."""
    if model.component is MLP:
        # A network that outputs zero predicts one clean sample, zero, for every input.
        model = Model(MLP, MLP.Settings(width=4, blocks=1), parametrization="x0")
        made = stage(model, fgsm(unit=unit))
        with torch.no_grad():
            made.scene.roles["student"].module.get_submodule("linear_out").weight.zero_()
            made.scene.roles["student"].module.get_submodule("linear_out").bias.zero_()
    else:
        made = stage(model, fgsm(unit=unit))
    keys = {"weight_rule": "constant", "w_max": 0.0}
    assert loss_of(made, Equivariance, **keys).abs().max() < 1e-18
    clean, adv = views_of(made)
    assert adv.delta is not None
    expected = (adv.delta / clean.sigma).square().mean(1)
    torch.testing.assert_close(loss_of(made, Invariance, **keys), expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("component", [RayFGSM, RayRandom])
def test_e_without_displacement_the_loss_is_that_of_ddpm(component: Any) -> None:
    """(e) Radius 0: the regulariser is 0 and its gradient too, bit for bit."""
    keys = component.Settings(bias="multiplicative", gamma=0.0, beta_max=0.0)
    made = stage(perceptron(), Moved("clean", component, keys))
    clean, adv = views_of(made)
    assert torch.equal(clean.x_t, adv.x_t)
    assert torch.equal(clean.eps, adv.eps)
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    both = run_step(made, [Turn("student", terms)], points())
    alone = run_step(made, [Turn("student", {"denoise": terms["denoise"]})], points())
    assert not both.losses["equivariance"].any()
    assert torch.equal(both.losses["denoise"], alone.losses["denoise"])
    for name, grad in alone.grads.items():
        assert torch.equal(both.grads[name], grad)


def test_e_with_weight_zero_the_gradient_is_that_of_ddpm() -> None:
    """(e) The other way to switch the regulariser off."""
    made = stage(perceptron(), fgsm())
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    turn = Turn("student", terms, weights={"equivariance": 0.0})
    both = run_step(made, [turn], points())
    alone = run_step(made, [Turn("student", {"denoise": terms["denoise"]})], points())
    assert both.losses["equivariance"].min() > 0
    for name, grad in alone.grads.items():
        assert torch.equal(both.grads[name], grad)


def test_g_a_step_never_lowers_the_gap_of_a_linear_model() -> None:
    """(g) J is convex then, and no coordinate moves against its slope."""
    made = stage(Model(_Linear), fgsm())
    start = stage(Model(_Linear), Moved("clean", RayRandom))
    clean, adv = views_of(made)
    _, ran = views_of(start)
    reference = eps_hat(made, clean, clean.x_t)
    gaps = [(eps_hat(made, clean, v.x_t) - reference).square().sum(1) for v in (ran, adv)]
    assert (gaps[1] >= gaps[0]).all()
    assert (gaps[1] > gaps[0]).sum() > 16


@pytest.mark.parametrize("objective", ["prediction-gap", "equivariance-residual"])
@pytest.mark.parametrize("unit", UNITS)
def test_the_attack_steps_along_finite_differences_of_its_objective(
    unit: str, objective: str
) -> None:
    """From the same random start, each entry moves where the objective grows, to the boundary."""
    made = stage(perceptron(), fgsm(unit=unit, objective=objective, step_scale=2.0))
    random = Moved("clean", RayRandom, RayRandom.Settings(unit=unit))
    clean, adv = views_of(made)
    _, ran = views_of(stage(perceptron(), random))
    reference = eps_hat(made, clean, clean.x_t)
    scale = clean.sigma if unit == "noise" else 1.0
    start = ran.delta / scale

    def value(delta: Tensor) -> Tensor:
        residual = eps_hat(made, clean, clean.x_t + delta * scale) - reference
        if objective == "equivariance-residual":
            residual = residual - delta * scale / clean.sigma
        return residual.square().sum(1)

    for axis in range(3):
        h = 1e-5 * adv.radius[:, None] * torch.nn.functional.one_hot(torch.tensor(axis), 3)
        slope = (value(start + h) - value(start - h)).detach()
        sure = slope.abs() > 1e-12
        assert sure.sum() > 24
        moved = adv.delta[:, axis]
        assert torch.equal(moved.sign()[sure], slope.sign()[sure])


@pytest.mark.parametrize("unit", UNITS)
def test_several_steps_are_projected_gradient_ascent(unit: str) -> None:
    """PGD (Madry et al., 2018) by hand: back into the box after every step."""
    made = stage(perceptron(), fgsm(unit=unit, steps=4, step_scale=0.7))
    random = Moved("clean", RayRandom, RayRandom.Settings(unit=unit))
    clean, adv = views_of(made)
    _, ran = views_of(stage(perceptron(), random))
    scale = clean.sigma if unit == "noise" else 1.0
    reference = eps_hat(made, clean, clean.x_t).detach()
    radius = adv.radius[:, None]
    delta = ran.delta / scale
    for _ in range(4):
        delta = delta.detach().requires_grad_()
        gap = (eps_hat(made, clean, clean.x_t + delta * scale) - reference).square().sum()
        (slope,) = torch.autograd.grad(gap, delta)
        delta = (delta + 0.7 * radius * slope.sign()).clamp(-radius, radius)
    torch.testing.assert_close(adv.delta, (delta * scale).detach(), rtol=1e-9, atol=1e-12)


def test_random_and_adversarial_views_of_one_name_begin_alike() -> None:
    """The start is keyed by the view, so that the two can be compared sample by sample."""
    _, ran = views_of(stage(perceptron(), Moved("clean", RayRandom)))
    made = stage(perceptron(), fgsm())
    with torch.no_grad():
        for parameter in made.scene.roles["student"].module.parameters():
            parameter.zero_()
    # A network that says the same everywhere has no slope to climb.
    _, adv = views_of(made)
    assert torch.equal(ran.delta, adv.delta)


@pytest.mark.parametrize(
    ("view", "cost"),
    [
        (fgsm(), Cost(3, 1, 1)),
        (fgsm(steps=3), Cost(5, 3, 1)),
        (Moved("clean", RayRandom), Cost(2, 0, 1)),
    ],
)
@pytest.mark.parametrize("component", [Equivariance, Invariance])
def test_a_step_costs_what_the_readme_says(
    component: type[LossTerm], view: Moved, cost: Cost
) -> None:
    """As planned, and as counted."""
    made = stage(perceptron(), view)
    terms = {"denoise": made.make(Denoise), "term": made.make(component)}
    result = run_step(made, [Turn("student", terms)], points())
    assert result.counted == result.planned == {"student": cost}


class _Spied(torch.autograd.Function):
    """A matrix product that notes which gradients each backward asks it for."""

    asked: ClassVar[list[tuple[bool, ...]]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """The product."""
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Both gradients, whoever wants them."""
        x, weight = ctx.saved_tensors
        _Spied.asked.append(ctx.needs_input_grad)
        return grads[0] @ weight.T, x.T @ grads[0]


class _Spy(_Linear):
    """A linear denoiser made of it."""

    def forward(self, x: Tensor, c_noise: Tensor | None = None, *_: Any, **__: Any) -> Any:
        return BackboneOutput(_Spied.apply(x, self.layer.weight), {})


def test_the_attack_computes_no_gradient_of_weights() -> None:
    """Its backward asks each layer for its input's gradient alone, the training's for the rest."""
    made = stage(Model(_Spy), fgsm(steps=2))
    terms = {"denoise": made.make(Denoise), "equivariance": made.make(Equivariance)}
    _Spied.asked.clear()
    run_step(made, [Turn("student", terms)], points())
    # Two steps of the search, then the training backward through the clean and the moved forward.
    assert _Spied.asked == [(True, False), (True, False), (False, True), (False, True)]


@pytest.mark.parametrize("shift", ["exact", "literal"])
def test_equivariance_is_the_weighted_residual_by_hand(shift: str) -> None:
    """Shift and weight, in image units."""
    made = stage(perceptron("v"), fgsm())
    clean, adv = views_of(made)
    assert adv.radius is not None
    residual = eps_hat(made, clean, adv.x_t) - eps_hat(made, clean, clean.x_t)
    residual = residual - adv.delta / (clean.sigma if shift == "exact" else 1.0)
    weight = torch.minimum(3**0.5 / adv.radius, 2.0 * (clean.sigma[:, 0] / adv.radius).square())
    expected = weight * residual.square().mean(1)
    loss = loss_of(made, Equivariance, shift=shift, w_max=2.0)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("unit", UNITS)
def test_the_cap_bounds_the_effective_weight_at_every_noise_level(unit: str) -> None:
    """C (r / sigma)^2 <= w_max in either unit, reached near the data, and c <= sqrt(3) / r."""
    made = stage(perceptron(), fgsm(unit=unit))
    clean, adv = views_of(made)
    sigma, radius = clean.sigma[:, 0], adv.radius
    assert radius is not None
    capped, free = (
        loss_of(made, Invariance, w_max=w_max, weight_rule="inverse-radius") for w_max in (0.5, 0.0)
    )
    plain = loss_of(made, Invariance, w_max=0.0, weight_rule="constant")
    torch.testing.assert_close(free / plain, 3**0.5 / radius, rtol=1e-9, atol=0)
    noise_radius = radius if unit == "noise" else radius / sigma
    effective = capped / plain * noise_radius.square()
    assert (effective <= 0.5 * (1 + 1e-9)).all()
    assert (effective > 0.5 * (1 - 1e-9)).any()
    assert (capped <= free * (1 + 1e-12)).all()


def test_rule_weight_is_finite_where_nothing_moves() -> None:
    """A radius of zero weighs nothing; the rest is not touched by it."""
    radius = torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)
    weight = rule_weight(radius, radius, rule="inverse-radius", w_max=0.0)
    torch.testing.assert_close(weight, torch.tensor([0.0, 10 * 3**0.5, 3**0.5]).double())
    constant = rule_weight(radius, radius, rule="constant", w_max=0.5)
    torch.testing.assert_close(constant, torch.tensor([0.0, 1.0, 0.5]).double())


@pytest.mark.parametrize("component", [Equivariance, Invariance])
def test_detaching_the_reference_changes_the_gradient_alone(component: type[LossTerm]) -> None:
    """The loss is the same number."""
    made = stage(perceptron(), fgsm())
    results = []
    for detach in (False, True):
        term = made.make(component, component.Settings(detach_reference=detach))
        results.append(run_step(made, [Turn("student", {"term": term})], points()))
    plain, cut = results
    assert torch.equal(plain.losses["term"], cut.losses["term"])
    assert any(not torch.equal(plain.grads[name], cut.grads[name]) for name in plain.grads)


@pytest.mark.parametrize("component", [Equivariance, Invariance])
@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"view": "clean"}, "view", "'clean' is no perturbed view of the noised sample"),
        ({"view": "gone"}, "view", "the recipe has adv"),
        ({"role": "classifier"}, "role", "model 'classifier' is no denoiser"),
    ],
)
def test_regularisers_refuse_views_and_models_that_do_not_fit(
    component: type[LossTerm], keys: dict[str, Any], key: str, words: str
) -> None:
    """The error names the key to change."""
    models = {
        "student": perceptron(),
        "classifier": Model(MLP, MLP.Settings(outputs=2), parametrization="none"),
    }
    made = build_stage(data=DATA, models=models, views={"adv": fgsm()})
    with pytest.raises(RecipeError) as caught:
        made.make(component, component.Settings(**keys))
    fault = caught.value.faults[0]
    assert (fault.code, fault.key) == ("R10", f"terms.tested.{key}")
    assert words in fault.message


@pytest.mark.parametrize("component", [RayFGSM, RayRandom])
def test_rays_refuse_a_view_of_images(component: Any) -> None:
    """An image has no noise level."""
    made = build_stage(
        data=DATA, models={"student": perceptron()}, views={"adv": Moved("image", component)}
    )
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("adv"),))
    with pytest.raises(RecipeError, match="no noise level") as caught:
        Plan([phase], made.scene)
    assert caught.value.faults[0].key == "views.adv.from"


def test_the_attack_reads_the_role_it_is_told_to() -> None:
    """A teacher can be attacked in place of the student."""
    keys = RayFGSM.Settings(role="teacher")
    models = {"student": perceptron(), "teacher": Model(MLP, MLP.Settings(width=8), frozen=True)}
    made = build_stage(data=DATA, models=models, views={"adv": Moved("clean", RayFGSM, keys)})
    assert View("adv").needs(made.scene)[1] == EpsHat("teacher", "clean")
    term = made.make(Equivariance)
    result = run_step(made, [Turn("student", {"term": term})], points())
    assert result.counted == result.planned
    assert result.counted == {"student": Cost(2, 0, 1), "teacher": Cost(2, 1, 0)}
