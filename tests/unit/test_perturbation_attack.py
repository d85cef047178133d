"""An attack as the perturbation of a view."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_toys.networks import ToyNet
from advdiff_toys.perturbations import ToyFGSM
from torch import Tensor

from advdiff_core import DataInfo, Domain, Spec, View
from advdiff_core.errors import RecipeError
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import CrossEntropy, Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(1, 2, 2), count=64, classes=3, domain=Domain(-1.0, 1.0))
CLASSIFIER = Model(ToyNet, ToyNet.Settings(outputs=3), parametrization="none")


def images(size: int = 8) -> Tensor:
    """Images [size, 1, 2, 2] in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.rand(size, 1, 2, 2, generator=generator, dtype=torch.float64) - 1


def attacked(base: str, **keys: Any) -> Moved:
    """A view moved by the toy FGSM."""
    attack = {k: keys.pop(k) for k in ("steps", "random_start") if k in keys}
    spec = Spec(
        kind="attack", use="toy-fgsm", settings=ToyFGSM.Settings(**attack), component=ToyFGSM,
        path="views.adv.perturb.attack",
    )  # fmt: skip
    return Moved(base, AttackPerturbation, AttackPerturbation.Settings(attack=spec, **keys))


def stage(view: Moved, model: Model | None = None, data: DataInfo = DATA) -> Stage:
    """One model and one attacked view."""
    return build_stage(data=data, models={"student": model or Model(ToyNet)}, views={"adv": view})


def view_of(made: Stage) -> tuple[Any, Any]:
    """The base view and the attacked one."""
    made.scene.roles["student"].module.double()
    base = made.scene.views["adv"].base
    assert base is not None
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View(base), View("adv")))
    step = made.step(Plan([phase], made.scene), images(), torch.arange(8) % 3)
    return step.get(View(base)), step.get(View("adv"))


def test_fgsm_on_a_classifier_is_the_sign_step_on_its_cross_entropy() -> None:
    """Goodfellow et al. (2015); the radius is counted on the [0, 1] scale and images stay valid."""
    made = stage(attacked("image", radius=0.1), CLASSIFIER)
    _, adv = view_of(made)
    x = images().requires_grad_()
    network = made.scene.roles["student"].module
    F.cross_entropy(network(x).output, torch.arange(8) % 3, reduction="sum").backward()
    assert x.grad is not None
    expected = (x.detach() + 0.2 * x.grad.sign()).clamp(-1, 1)
    torch.testing.assert_close(adv.x_t, expected, rtol=0, atol=1e-6)
    assert adv.x_t.abs().max() <= 1
    assert torch.equal(adv.radius, torch.full((8,), 0.1, dtype=torch.float64))


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("frozen", [False, True])
def test_plan_foretells_the_cost_of_an_attack(steps: int, frozen: bool) -> None:
    """As many passes as the attack says, of a trained or a frozen victim."""
    view = attacked("image", role="victim", steps=steps)
    models = {"student": CLASSIFIER, "victim": CLASSIFIER}
    if frozen:
        keys = ToyNet.Settings(outputs=3)
        models["victim"] = Model(ToyNet, keys, parametrization="none", frozen=True)
    made = build_stage(data=DATA, models=models, views={"adv": view})
    term = made.make(CrossEntropy, CrossEntropy.Settings(view="adv"))
    result = run_step(made, [Turn("student", {"ce": term})], images(), torch.arange(8) % 3)
    assert result.counted["victim"] == Cost(steps, steps, 0)
    assert result.counted == result.planned


def test_an_attack_leaves_the_model_as_it_was() -> None:
    """Parameters, buffers, grads and flags."""
    made = stage(attacked("image", steps=2), CLASSIFIER)
    network = made.scene.roles["student"].module.double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    view_of(made)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("base", ["clean", "image"])
@pytest.mark.parametrize("unit", ["pixel", "image"])
def test_a_radius_of_zero_leaves_the_view_as_it_is(base: str, unit: str) -> None:
    """Bit for bit."""
    model = CLASSIFIER if base == "image" else Model(ToyNet)
    clean, adv = view_of(stage(attacked(base, radius=0.0, unit=unit), model))
    assert torch.equal(clean.x_t, adv.x_t)
    assert base == "image" or torch.equal(clean.eps, adv.eps)


@pytest.mark.parametrize("unit", ["pixel", "image", "noise"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("objective", ["prediction-gap", "denoise"])
def test_an_attack_on_a_denoiser_raises_its_objective_inside_the_budget(
    objective: str, norm: str, unit: str
) -> None:
    """The radius is counted in the unit named; the target follows."""
    keys = {"objective": objective, "norm": norm, "unit": unit, "random_start": True}
    made = stage(attacked("clean", radius=0.05, steps=4, **keys))
    clean, adv = view_of(made)
    scale = {"pixel": 2.0, "image": 1.0, "noise": clean.sigma}[unit]
    size = torch.linalg.vector_norm(
        ((adv.x_t - clean.x_t) / scale).flatten(1), ord={"linf": torch.inf, "l2": 2, "l1": 1}[norm],
        dim=1,
    )  # fmt: skip
    assert (size <= 0.05 * (1 + 1e-5)).all()
    assert (size > 0.02).any()
    whole = adv.alpha * adv.x0 + adv.sigma * adv.eps
    torch.testing.assert_close(whole, adv.x_t, rtol=1e-9, atol=1e-9)
    network = made.scene.roles["student"].module
    before, after = (network(v.x_t, 1000 * v.t).output for v in (clean, adv))
    gain = (after - before).square().sum()
    if objective == "denoise":
        gain = (after - adv.eps).square().sum() - (before - clean.eps).square().sum()
    assert gain > 0


@pytest.mark.parametrize("follows", [True, False])
def test_fgsm_on_the_denoising_loss_is_the_sign_step_by_hand(follows: bool) -> None:
    """With a target that follows, the loss is that against the noise moved along."""
    keys = {"objective": "denoise", "follows": follows, "radius": 0.1, "unit": "image"}
    made = stage(attacked("clean", **keys))
    clean, adv = view_of(made)
    delta = torch.zeros_like(clean.x_t).requires_grad_()
    network = made.scene.roles["student"].module
    moved = delta / clean.sigma if follows else 0.0
    error = network(clean.x_t + delta, 1000 * clean.t).output - (clean.eps + moved)
    (gradient,) = torch.autograd.grad(error.square().sum(), delta)
    torch.testing.assert_close(adv.delta, 0.1 * gradient.sign(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("unit", ["pixel", "image", "noise"])
def test_what_an_attack_found_is_not_rescaled(unit: str) -> None:
    """Of a network without a slope, the random start comes back, in its unit."""
    view = attacked("clean", radius=0.1, unit=unit, norm="linf", random_start=True)
    made = stage(view)
    with torch.no_grad():
        for parameter in made.scene.roles["student"].module.parameters():
            parameter.zero_()
    clean, adv = view_of(made)
    scale = {"pixel": 2.0, "image": 1.0, "noise": clean.sigma}[unit]
    plan = Plan([], made.scene)
    rng = made.step(plan, images()).rng("view/adv")
    start = 0.1 * (2 * rng.uniform((8, 4)).reshape(8, 1, 2, 2) - 1)
    torch.testing.assert_close(adv.delta / scale, start.double(), rtol=1e-5, atol=1e-7)


def test_a_fixed_target_stays_the_drawn_noise() -> None:
    """`follows = false` moves the input alone."""
    keys = {"objective": "denoise", "follows": False, "radius": 0.2}
    clean, adv = view_of(stage(attacked("clean", **keys)))
    assert torch.equal(clean.eps, adv.eps)
    assert not torch.equal(clean.x_t, adv.x_t)


def test_an_attacked_view_trains_like_any_other() -> None:
    """Adversarial training of a denoiser: clean and moved forward, attack and its backward."""
    made = stage(attacked("clean", objective="denoise"))
    terms = {
        "clean": made.make(Denoise),
        "adv": made.make(Denoise, Denoise.Settings(view="adv")),
    }
    result = run_step(made, [Turn("student", terms)], images())
    assert result.counted["student"] == Cost(3, 1, 1)
    assert result.counted == result.planned


@pytest.mark.parametrize(
    ("base", "objective", "data", "words"),
    [
        ("image", "denoise", DATA, "cannot be attacked on 'image', a view of images"),
        ("clean", "cross-entropy", DATA, "cannot be attacked on 'clean', a view of noised"),
        ("image", "auto", DataInfo(shape=(1, 2, 2), count=4), "no labels"),
    ],
)
def test_an_objective_that_the_view_does_not_have_is_refused(
    base: str, objective: str, data: DataInfo, words: str
) -> None:
    """Before anything runs, naming the key."""
    made = stage(attacked(base, objective=objective), CLASSIFIER, data)
    with pytest.raises(RecipeError, match=words) as caught:
        view_of(made)
    assert caught.value.faults[0].code == "R10"
    assert caught.value.faults[0].key.startswith("views.adv.perturb.")
