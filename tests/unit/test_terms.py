"""The core's loss terms against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_toys.networks import ToyNet
from advdiff_toys.perturbations import ToyShift
from torch import Tensor

from advdiff_core import DataInfo, Forward, LossTerm, NoiseSchedule, View
from advdiff_core.errors import RecipeError
from advdiff_core.math.weights import loss_weight
from advdiff_core.schedules import EDM, VE, Flow, VPLinear
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import CrossEntropy, Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step

DATA = DataInfo(shape=(3,), count=64, classes=4)
SCHEDULES = [VPLinear, VE, EDM, Flow]


def points(size: int = 16) -> Tensor:
    """Samples [size, 3] in float64."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def labels(size: int = 16) -> Tensor:
    """Labels [size]."""
    return torch.arange(size) % 4


def stage(
    parametrization: str = "eps", schedule: type[NoiseSchedule] = VPLinear, **views: Moved
) -> Stage:
    """A student with this parametrization, and a classifier."""
    models = {
        "student": Model(ToyNet, parametrization=parametrization),
        "classifier": Model(ToyNet, ToyNet.Settings(outputs=4), parametrization="none"),
    }
    made = schedule(schedule.Settings(), build_stage(data=DATA, models={}).build)
    return build_stage(data=DATA, models=models, views=views, schedule=made)


def loss_of(made: Stage, term: LossTerm, player: str = "student") -> Tensor:
    """Loss of each sample [B]."""
    turn = Turn(player, {"tested": term})
    return run_step(made, [turn], points(), labels()).losses["tested"]


def values(made: Stage, *, view: str = "clean") -> tuple[Any, Any]:
    """Noised samples and prediction of the student on a view."""
    queries = (View(view), Forward("student", view))
    phase = Phase(player="student", roles=frozenset({"student"}), needs=queries)
    made.scene.roles["student"].module.double()
    step = made.step(Plan([phase], made.scene), points(), labels())
    return step.get(queries[0]), step.get(queries[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("space", ["eps", "x0", "v", "flow"])
def test_denoise_is_the_squared_error_in_its_space(
    space: str, parametrization: str, schedule: type[NoiseSchedule]
) -> None:
    """Mean over elements, whatever the model predicts and the schedule is."""
    made = stage(parametrization, schedule)
    keys = Denoise.Settings(space=space, weighting="uniform")
    loss = loss_of(made, made.make(Denoise, keys))
    noised, prediction = values(made)
    truth = {
        "eps": noised.eps,
        "x0": noised.x0,
        "v": noised.alpha * noised.eps - noised.sigma * noised.x0,
        "flow": noised.eps - noised.x0,
    }
    expected = (getattr(prediction, space) - truth[space]).square().mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "flow"])
def test_denoise_compares_what_the_model_predicts_by_default(parametrization: str) -> None:
    """No conversion, and no weight."""
    made = stage(parametrization)
    auto = loss_of(made, made.make(Denoise))
    keys = Denoise.Settings(space=parametrization, weighting="uniform")
    assert torch.equal(auto, loss_of(made, made.make(Denoise, keys)))


@pytest.mark.parametrize("weighting", ["min-snr", "soft-min-snr", "edm", "p2"])
@pytest.mark.parametrize("schedule", [VPLinear, VE, Flow])
def test_a_weighted_loss_is_the_same_number_in_eps_and_x0(
    weighting: str, schedule: type[NoiseSchedule]
) -> None:
    """A law belongs to a noise level, not to a space."""
    made = stage("eps", schedule)
    keys = [Denoise.Settings(space=space, weighting=weighting) for space in ("eps", "x0", "flow")]
    first, *others = (loss_of(made, made.make(Denoise, one)) for one in keys)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=0)


def test_parameters_of_a_law_reach_it() -> None:
    """gamma, k and sigma_data."""
    made = stage("x0")
    noised, prediction = values(made)
    snr = (noised.alpha / noised.sigma).square().flatten()
    error = (prediction.x0 - noised.x0).square().mean(1)
    cases: list[dict[str, Any]] = [
        {"weighting": "min-snr", "gamma": 2.0},
        {"weighting": "p2", "gamma": 0.5, "k": 3.0},
        {"weighting": "edm", "sigma_data": 0.3},
    ]
    for case in cases:
        loss = loss_of(made, made.make(Denoise, Denoise.Settings(**case)))
        law = {key: value for key, value in case.items() if key != "weighting"}
        weight = loss_weight(case["weighting"], snr, "x0", **law)
        torch.testing.assert_close(loss, weight * error, rtol=1e-12, atol=0)


def test_edm_models_are_weighted_as_edm_with_their_own_sigma_data() -> None:
    """Karras et al. (2022), table 1: 1 / sigma^2 + 1 / sigma_data^2 on the error of x0_hat."""
    model = Model(ToyNet, parametrization="edm", sigma_data=0.7)
    schedule = EDM(EDM.Settings(), build_stage(data=DATA, models={}).build)
    made = build_stage(data=DATA, models={"student": model}, schedule=schedule)
    loss = loss_of(made, made.make(Denoise))
    noised, prediction = values(made)
    sigma = noised.sigma.flatten()
    weight = (sigma**2 + 0.7**2) / (sigma * 0.7) ** 2
    expected = weight * (prediction.x0 - noised.x0).square().mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("unit", ["image", "noise"])
def test_denoise_on_a_perturbed_view_knows_whether_the_target_follows(
    unit: str, follows: bool
) -> None:
    """The moved noise explains the moved input, or the drawn noise stays the target."""
    keys = ToyShift.Settings(unit=unit, follows=follows)
    made = stage(adv=Moved("clean", ToyShift, keys))
    loss = loss_of(made, made.make(Denoise, Denoise.Settings(view="adv")))
    clean, _ = values(made)
    noised, prediction = values(made, view="adv")
    shift = (noised.x_t - clean.x_t) / noised.sigma if follows else 0.0
    assert not torch.equal(noised.x_t, clean.x_t)
    expected = (prediction.eps - (clean.eps + shift)).square().mean(1)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


def test_cross_entropy_is_that_of_the_classifiers_logits() -> None:
    """On the image itself, with and without smoothing."""
    made = stage()
    logits = made.scene.roles["classifier"].module.double()(points()).output
    for smoothing in (0.0, 0.1):
        keys = CrossEntropy.Settings(role="classifier", label_smoothing=smoothing)
        loss = loss_of(made, made.make(CrossEntropy, keys), "classifier")
        expected = F.cross_entropy(logits, labels(), reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("component", "settings", "key", "words"),
    [
        (Denoise, Denoise.Settings(view="image"), "view", "'image' is a view of images"),
        (Denoise, Denoise.Settings(role="classifier"), "role", "'classifier' is no denoiser"),
        (CrossEntropy, CrossEntropy.Settings(), "role", "model 'student' is no classifier"),
    ],
)
def test_terms_refuse_models_and_views_that_do_not_fit(
    component: type[LossTerm], settings: Any, key: str, words: str
) -> None:
    """The error names the key of the recipe to change."""
    with pytest.raises(RecipeError) as caught:
        stage().make(component, settings, path="terms.tested")
    fault = caught.value.faults[0]
    assert (fault.code, fault.key) == ("R10", f"terms.tested.{key}")
    assert words in fault.message


def test_cross_entropy_refuses_data_without_labels() -> None:
    """There is nothing to classify."""
    models = {"student": Model(ToyNet, ToyNet.Settings(outputs=2), parametrization="none")}
    made = build_stage(data=DataInfo(shape=(3,), count=4), models=models)
    with pytest.raises(RecipeError, match="no labels"):
        made.make(CrossEntropy)
