"""What an attack can make large: any scalar of any query, in a training view and outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_attacks.steps import PGD
from advdiff_toys.networks import ToyNet
from torch import Tensor

from advdiff_core import (
    Budget,
    Build,
    DataInfo,
    Domain,
    Features,
    ScalarVictim,
    SeedDraws,
    Spec,
    View,
)
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.sampler import all_steps
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.samplers import DDIM
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.terms import CrossEntropy, Denoise
from advdiff_core.testing.bench import draws
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost, expand

DATA = DataInfo(shape=(1, 2, 2), count=64, classes=3, domain=Domain(-1.0, 1.0))
CLASSIFIER = Model(ToyNet, ToyNet.Settings(outputs=3), parametrization="none")
LABELS = torch.arange(8) % 3


def images(size: int = 8) -> Tensor:
    """Images [size, 1, 2, 2] in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(5)
    return 2 * torch.rand(size, 1, 2, 2, generator=generator, dtype=torch.float64) - 1


def pgd() -> PGD:
    """An attack that finds what there is to find on these networks."""
    return PGD(PGD.Settings(steps=20, restarts=3), Build())


def term_spec(component: type[Any], **keys: Any) -> Spec:
    """A nested loss term."""
    return Spec(
        kind="loss_term", use="tested", settings=component.Settings(**keys), component=component,
        path="views.adv.perturb.term",
    )  # fmt: skip


def attacked(base: str, *, steps: int = 4, **keys: Any) -> Moved:
    """A view moved by PGD from a random start."""
    settings = PGD.Settings(steps=steps, keep="last", step_scale=0.5)
    spec = Spec(kind="attack", use="pgd", settings=settings, component=PGD)
    return Moved(base, AttackPerturbation, AttackPerturbation.Settings(attack=spec, **keys))


def stage(view: Moved, **models: Model) -> Stage:
    """Models and one attacked view, float64."""
    made = build_stage(data=DATA, models=models, views={"adv": view})
    for role in made.scene.roles.values():
        role.module.double()
    return made


def views_of(made: Stage) -> tuple[Any, Any]:
    """The base view and the attacked one."""
    base = made.scene.views["adv"].base
    assert base is not None
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View(base), View("adv")))
    step = made.step(Plan([phase], made.scene), images(), LABELS)
    return step.get(View(base)), step.get(View("adv"))


def signs(seed: int) -> Tensor:
    """Random signs [8, 1, 2, 2], float64."""
    return draws(seed, 8).normal((8, 1, 2, 2)).double().sign()


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p(clean) || p(logits)) [B]."""
    target = clean.softmax(1)
    return F.kl_div(logits.log_softmax(1), target, reduction="none").sum(1)


def test_kl_grows_from_the_clean_prediction_which_terms_share() -> None:
    """TRADES (Zhang et al. 2019): as many passes as steps; the clean forward is the term's."""
    made = stage(attacked("image", objective="kl", steps=3), student=CLASSIFIER)
    network = made.scene.roles["student"].module
    clean, adv = views_of(made)
    before = network(clean.x_t).output
    moved = divergence(network(adv.x_t).output, before)
    random = (clean.x_t + 16 / 255 * signs(0)).clamp(-1, 1)
    assert (moved > 0).all()
    assert moved.mean() > 1.5 * divergence(network(random).output, before).mean()
    terms = {
        "clean": made.make(CrossEntropy),
        "adv": made.make(CrossEntropy, CrossEntropy.Settings(view="adv")),
    }
    made = build_stage(data=DATA, models={"student": CLASSIFIER}, views={
        "adv": attacked("image", objective="kl", steps=3)})  # fmt: skip
    result = run_step(made, [Turn("student", terms)], images(), LABELS)
    assert result.counted["student"] == Cost(2 + 3, 3, 1)
    assert result.counted == result.planned


def test_the_x0_gap_is_the_eps_gap_by_sigma_over_alpha() -> None:
    """Along one gradient step from the same start both move alike, for one noise level each."""
    moved = [
        views_of(stage(attacked("clean", objective=o), student=Model(ToyNet)))[1].x_t
        for o in ("x0-gap", "prediction-gap")
    ]
    # x0_hat = (x_t - sigma eps_hat) / alpha: the signs differ where x_t itself moves.
    assert not torch.equal(*moved)
    made = stage(attacked("clean", objective="x0-gap", steps=4), student=Model(ToyNet))
    clean, adv = views_of(made)
    network = made.scene.roles["student"].module
    gaps = []
    for x_t in (adv.x_t, clean.x_t + adv.delta.abs() * 0.1):
        before, after = (network(at, 1000 * clean.t).output for at in (clean.x_t, x_t))
        x0 = ((x_t - clean.sigma * after) - (clean.x_t - clean.sigma * before)) / clean.alpha
        gaps.append(x0.square().flatten(1).mean(1))
    assert (gaps[0] > gaps[1]).all()


@pytest.mark.parametrize("base", ["image", "clean"])
def test_features_move_away_from_where_they_were(base: str) -> None:
    """At the tap named, on either kind of view; only the layers up to it are run."""
    model = CLASSIFIER if base == "image" else Model(ToyNet)
    keys = {"objective": "feature-gap", "tap": "layer.0", "steps": 4, "unit": "image"}
    made = stage(attacked(base, radius=0.1, **keys), student=model)
    network = made.scene.roles["student"].module
    network.layers_run = 0
    clean, adv = views_of(made)
    assert network.layers_run == 5, "the first layer alone, of the clean input and of four moved"

    def feature(x: Tensor) -> Tensor:
        c_noise = None if clean.t is None else 1000 * clean.t
        return network(x, c_noise, taps=("layer.0",)).features["layer.0"]

    def far(x: Tensor) -> float:
        return float((feature(x) - feature(clean.x_t)).detach().square().mean())

    for seed in range(5):
        within = draws(seed, 8).uniform((8, 1, 2, 2), -0.1, 0.1).double()
        assert far(adv.x_t) > 1.5 * far(clean.x_t + within)


def test_any_term_is_an_objective() -> None:
    """The term on its view; with cross-entropy it is what the objective of that name finds."""
    term = term_spec(CrossEntropy)
    by_term = views_of(stage(attacked("image", objective="term", term=term), student=CLASSIFIER))
    by_name = views_of(stage(attacked("image", objective="cross-entropy"), student=CLASSIFIER))
    assert torch.equal(by_term[1].x_t, by_name[1].x_t)
    smooth = term_spec(CrossEntropy, label_smoothing=0.9)
    other = views_of(stage(attacked("image", objective="term", term=smooth), student=CLASSIFIER))
    assert not torch.equal(other[1].x_t, by_name[1].x_t)


def test_a_denoising_term_in_another_space_is_an_objective() -> None:
    """Its squared error grows, and the plan foretells the passes."""
    view = attacked("clean", objective="term", term=term_spec(Denoise, space="x0"), steps=4)
    made = stage(view, student=Model(ToyNet))
    clean, adv = views_of(made)
    network = made.scene.roles["student"].module

    def error(x_t: Tensor) -> Tensor:
        x0_hat = (x_t - clean.sigma * network(x_t, 1000 * clean.t).output) / clean.alpha
        return (x0_hat - clean.x0).square().flatten(1).mean(1)

    assert (error(adv.x_t) > error(clean.x_t)).all()
    made = build_stage(data=DATA, models={"student": Model(ToyNet)}, views={"adv": view})
    turn = Turn("student", {"adv": made.make(Denoise, Denoise.Settings(view="adv"))})
    result = run_step(made, [turn], images())
    assert result.counted["student"] == Cost(4 + 1, 4, 1)
    assert result.counted == result.planned


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"objective": "term"}, ("perturb.term", "nothing says which term")),
        ({"objective": "feature-gap"}, ("perturb.tap", "needs the name of a tap")),
        ({"objective": "x0-gap"}, ("perturb.objective", "a view of images")),
    ],
)
def test_an_objective_that_lacks_its_part_is_refused(keys: Any, words: tuple[str, ...]) -> None:
    """In one line that names the key."""
    with pytest.raises(RecipeError) as caught:
        views_of(stage(attacked("image", **keys), student=CLASSIFIER))
    fault = caught.value.faults[0]
    for word in words:
        assert word in f"{fault.key} {fault.message}"


def test_a_term_with_parameters_is_refused() -> None:
    """Nobody would train its head inside an attack."""

    class Headed(CrossEntropy):
        """A term with a head."""

        def __init__(self, settings: Any, build: Build) -> None:
            super().__init__(settings, build)
            self.head = torch.nn.Linear(2, 2)

    view = attacked("image", objective="term", term=term_spec(Headed))
    with pytest.raises(RecipeError, match="has parameters, which nobody would train"):
        stage(view, student=CLASSIFIER)


def test_a_term_that_does_not_see_the_view_is_refused() -> None:
    """Moving the input would change nothing: said, instead of a traceback from autograd."""
    view = attacked("image", objective="term", term=term_spec(Denoise), role="student")
    made = stage(view, student=Model(ToyNet))
    with pytest.raises(ContractError, match="does not depend on the input that is moved") as caught:
        views_of(made)
    assert "let it read the view" in str(caught.value)


def test_any_query_of_a_step_can_be_attacked_from_python() -> None:
    """Features of an image, by the class that takes any function and any scalar."""
    made = stage(attacked("image"), student=CLASSIFIER)
    query = Features("student", "image", "layer.1")
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("image"), query))
    step = made.step(Plan([phase], made.scene), images(), LABELS)
    clean = step.get(query).detach()
    victim = ScalarVictim(
        function=lambda x: step.at("image", x).get(query),
        scalar=lambda found: (found - clean).square().flatten(1).mean(1),
    )
    budget = Budget("linf", 0.1, "image")
    found = pgd().run(victim, images(), budget, domain=None, rng=draws(0, 8))
    loss = victim.loss(victim.outputs(found)).mean()
    for seed in range(5):
        assert loss > 1.2 * victim.loss(victim.outputs(images() + 0.1 * signs(seed))).mean()
    assert victim.labels is None
    assert victim.broken(clean) is None
    assert victim.rows(torch.arange(2)) is None


def test_the_output_of_a_sampler_can_be_attacked() -> None:
    """Its start x_T is moved, the gradient goes through every step of DDIM."""
    made = stage(attacked("clean"), student=Model(ToyNet))
    role, schedule = made.scene.roles["student"], made.scene.schedule
    role.module.requires_grad_(False)
    sampler = DDIM(DDIM.Settings(steps=4), Build(schedule=schedule))
    noise = draws(1, 8).normal((8, 1, 2, 2)).double()
    x_T = expand(schedule.sigma(sampler.grid()[:1]), noise) * noise

    def sample(x: Tensor) -> Tensor:
        return sampler.sample(
            lambda x_t, t: role.wear(role.module, x_t, t, None), x, SeedDraws(range(8)),
            grad_steps=all_steps(4),
        ).x0  # fmt: skip

    clean = sample(x_T).detach()
    victim = ScalarVictim(
        function=sample, scalar=lambda x0: (x0 - clean).square().flatten(1).mean(1)
    )
    budget = Budget("l2", 0.3, "image")
    found = pgd().run(victim, x_T, budget, domain=None, rng=draws(2, 8))
    size = (found - x_T).flatten(1).norm(dim=1)
    assert (size <= 0.3 * (1 + 1e-5)).all()
    distance = victim.loss(victim.outputs(found))
    for seed in range(5):
        direction = draws(3 + seed, 8).normal((8, 4)).double()
        random = x_T + 0.3 * (direction / direction.norm(dim=1, keepdim=True)).reshape(8, 1, 2, 2)
        reached = victim.loss(victim.outputs(random))
        assert (distance >= 0.95 * reached).all()
        assert distance.mean() > 1.1 * reached.mean()


def test_logits_of_a_function_have_verdicts() -> None:
    """With labels, broken is misclassified."""
    labels = torch.tensor([0, 1])
    victim = ScalarVictim(
        function=lambda x: x, scalar=lambda z: F.cross_entropy(z, labels, reduction="none"),
        labels=labels,
    )  # fmt: skip
    verdict = victim.broken(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert verdict is not None
    assert verdict.tolist() == [False, True]
