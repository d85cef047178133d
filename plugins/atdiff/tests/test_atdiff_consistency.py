"""Consistency training and distillation as a step runs them: gradients, masks, options, costs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from advdiff_atdiff.consistency import ConsistencyDistillation, ConsistencyTraining
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.distances import l1, l2, pseudo_huber, pseudo_huber_mean
from advdiff_atdiff.perturbations import Free
from attrs import evolve
from torch import Tensor

from advdiff_core import Build, DataInfo, Forward, LossTerm, RecipeError, View, expand
from advdiff_core.backbones.mlp import MLP
from advdiff_core.schedules import EDM
from advdiff_core.testing import Drawn, Model, Moved, Turn, build_stage, run_step
from advdiff_core.testing.steps import Stage, StepResult
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64)
SMALL = MLP.Settings(width=8, blocks=1)
GRID: dict[str, Any] = {"curriculum": "constant", "levels": 6, "sigma_data": 0.5}
TERMS: dict[str, type[LossTerm]] = {"ct": ConsistencyTraining, "cd": ConsistencyDistillation}


def net(**keys: Any) -> Model:
    """A small denoiser in EDM's form."""
    return Model(MLP, keys.pop("made", SMALL), parametrization="edm", sigma_data=0.5, **keys)


def stage_of(*, free: bool = False, grid: dict[str, Any] | None = None, **models: Model) -> Stage:
    """Student, target and teacher on EDM's noise levels."""
    roles = {
        "student": net(), "target": net(follows="student"), "teacher": net(frozen=True), **models,
    }  # fmt: skip
    views = {"adv": Moved("clean", Free, Free.Settings(alpha=0.3, rho=1.0))} if free else {}
    times = Drawn(ConsistencyGrid, ConsistencyGrid.Settings(**(grid or GRID)))
    schedule = EDM(EDM.Settings(), Build())
    stage = build_stage(data=DATA, models=roles, views=views, schedule=schedule, times=times)
    for name, role in stage.scene.roles.items():
        stir(role.module, seed=0 if name in ("student", "target") else 1)
    return stage


@torch.no_grad()
def stir(module: torch.nn.Module, *, seed: int, size: float = 0.2) -> None:
    """Move every weight: a network that starts at zero says nothing of its input."""
    rng = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.add_(size * torch.randn(weight.shape, generator=rng))


def term_of(stage: Stage, kind: str = "ct", **keys: Any) -> LossTerm:
    """One of the two terms."""
    cls: Any = TERMS[kind]
    made: LossTerm = stage.make(cls, cls.Settings(**keys), path="terms.consistency")
    return made


def batch(size: int = 8) -> Tensor:
    """Seeded samples."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def run(stage: Stage, term: LossTerm, *, passes: int = 1, rate: float = 0.0) -> StepResult:
    """One step of the student alone."""
    turn = Turn("student", {"c": term}, passes=passes, moves=True, rate=rate)
    return run_step(stage, [turn], batch())


def by_hand(stage: Stage, step: Any, target: str) -> tuple[Tensor, Tensor]:
    """`f(x_(t_(n+1)))` and `f(x_(t_n))` by the raw networks, in the form of the paper."""
    noised, grid = step.get(View("clean")), stage.build.times
    assert isinstance(grid, ConsistencyGrid)
    before = grid.before(noised.t, 0)
    low = stage.scene.schedule.t_min if stage.scene.schedule else 0.0

    def function(role: str, x: Tensor, t: Tensor) -> Tensor:
        module, t = stage.scene.roles[role].module, t[:, None]
        c_in = 1 / torch.sqrt(t**2 + 0.25)
        raw = module(c_in * x, stage.scene.roles[role].wear.noise_input(t[:, 0])).output
        c_skip = 0.25 / ((t - low) ** 2 + 0.25)
        return c_skip * x + (t - low) * 0.5 * c_in * raw

    x_before = noised.x0 + before[:, None] * noised.eps
    return function("student", noised.x_t, noised.t), function(target, x_before, before)


@pytest.mark.parametrize("target", ["target", "student"])
def test_loss_and_gradient_are_those_written_by_hand(target: str) -> None:
    """With an average or with the student itself as target, which carries no gradient."""
    stage = stage_of()
    stir(stage.scene.roles["target"].module, seed=2, size=0.05)
    found = run(stage, term_of(stage, target=target))
    hat, goal = by_hand(stage, found.steps[0], target)
    wanted = (hat - goal.detach()).square().mean(1)
    torch.testing.assert_close(found.losses["c"], wanted.detach(), rtol=1e-9, atol=1e-12)
    parameters = dict(stage.scene.roles["student"].module.named_parameters())
    grads = torch.autograd.grad(wanted.mean(), list(parameters.values()))
    for name, grad in zip(parameters, grads, strict=True):
        torch.testing.assert_close(
            found.grads[f"models.student.{name}"], grad, rtol=1e-7, atol=1e-10
        )
    assert not [name for name in found.grads if not name.startswith("models.student.")]


def test_improved_consistency_training_weighs_by_the_gap() -> None:
    """Pseudo-Huber with c = 0.00054 sqrt(D), over t_(n+1) - t_n."""
    stage = stage_of()
    keys = {"target": "student", "distance": "pseudo-huber", "weighting": "inverse-gap"}
    found = run(stage, term_of(stage, **keys))
    hat, goal = by_hand(stage, found.steps[0], "student")
    t, grid = found.steps[0].get(View("clean")).t, stage.build.times
    assert isinstance(grid, ConsistencyGrid)
    c = 0.00054 * 3**0.5
    wanted = (((hat - goal).square().sum(1) + c * c).sqrt() - c) / (t - grid.before(t, 0))
    torch.testing.assert_close(found.losses["c"], wanted.detach(), rtol=1e-6, atol=1e-10)


def test_both_branches_see_one_dropout_mask() -> None:
    """A target that equals the student, at the student's own input, says bit for bit the same."""
    noisy = MLP.Settings(width=8, blocks=1, dropout=0.5)
    models = {
        "student": net(made=noisy, train=True),
        "target": net(made=noisy, train=True, follows="student"),
    }
    stage = stage_of(**models)
    term = term_of(stage)
    plan = stage.plan([Turn("student", {"c": term})])
    term.double()
    for role in stage.scene.roles.values():
        role.module.double()
    step = stage.step(plan, batch())
    step.enter(plan.phases[0], [])
    own = step.get(Forward("student", "clean"))
    noised = step.get(View("clean"))
    probe = step.at("clean", noised.x_t)
    assert noised.t is not None
    other = probe.network("target").denoise(noised.x_t, noised.t)
    assert torch.equal(own.value, other.value)
    stage.scene.roles["target"].module.eval()
    assert not torch.equal(own.value, probe.network("target").denoise(noised.x_t, noised.t).value)


def units(result: StepResult, passes: int) -> int:
    """Forward units of a step: a backward to parameters is two, one towards an input is one."""
    total = sum(result.counted.values(), Cost())
    return total.forwards + total.input_backwards + 2 * passes


@pytest.mark.parametrize(
    ("moves", "wanted"), [("student", 14), ("target", 17), ("both", 18)], ids=["A", "B", "C"]
)
def test_options_cost_what_was_counted_by_hand(moves: str, wanted: int) -> None:
    """Three passes against six units of a plain step; the plan foretells what happens."""
    plain = run(stage_of(), term_of(stage_of(), "cd"))
    assert units(plain, 1) == 6
    stage = stage_of(free=True)
    found = run(stage, term_of(stage, "cd", view="adv", moves=moves), passes=3)
    assert found.counted == found.planned
    assert units(found, 3) == wanted


@pytest.mark.parametrize("kind", ["ct", "cd"])
@pytest.mark.parametrize("moves", ["student", "target", "both"])
def test_one_pass_is_plain_training_bit_for_bit(kind: str, moves: str) -> None:
    """Delta starts at zero: loss and gradients are those of the term on the clean view."""
    plain, stage = stage_of(), stage_of(free=True)
    wanted = run(plain, term_of(plain, kind))
    found = run(stage, term_of(stage, kind, view="adv", moves=moves))
    if moves == "both" and kind == "ct":
        # The noise of the moved point is worked out from the point: equal up to rounding.
        torch.testing.assert_close(found.losses["c"], wanted.losses["c"], rtol=1e-9, atol=1e-12)
        return
    assert torch.equal(found.losses["c"], wanted.losses["c"])
    for name, grad in wanted.grads.items():
        assert torch.equal(found.grads[name], grad), name


@pytest.mark.parametrize("kind", ["ct", "cd"])
@pytest.mark.parametrize("moves", ["student", "target"])
def test_free_delta_raises_the_loss(kind: str, moves: str) -> None:
    """With weights that stay, the second pass has a larger loss than the first."""
    stage = stage_of(free=True)
    term = term_of(stage, kind, view="adv", moves=moves)
    first = run(stage, term).losses["c"].mean()
    again = run(stage, term, passes=2).losses["c"].mean()
    assert float(again) > float(first)


def test_both_moved_means_that_the_teacher_starts_from_the_moved_point() -> None:
    """Option C: the loss is that of a plain step whose clean input had been moved."""
    stage = stage_of(free=True)
    term = term_of(stage, "cd", view="adv", moves="both")
    plan = stage.plan([Turn("student", {"c": term}, passes=2, moves=True)])
    for role in stage.scene.roles.values():
        role.module.double()
    step = stage.step(plan, batch())
    step.enter(plan.phases[0], [])
    term(step).mean().backward()
    step.ascend()
    step.leave(plan.phases[0], last=False)
    found, delta = term(step), step.get(View("adv")).delta
    assert delta is not None
    assert float(delta.detach().abs().max()) > 0
    other = stage_of()
    plain = term_of(other, "cd")
    again = other.step(other.plan([Turn("student", {"c": plain})]), batch())
    again.enter(again.plan.phases[0], [])
    for role in other.scene.roles.values():
        role.module.double()
    clean = again.get(View("clean"))
    again._memo[View("clean")] = clean._replace(x_t=clean.x_t + delta.detach())
    torch.testing.assert_close(plain(again), found, rtol=1e-10, atol=1e-12)


def test_moved_target_reads_the_point_plus_delta_and_leaves_the_student_alone() -> None:
    """Option B: the student's forward is the clean one, the target's input is off by delta."""
    stage = stage_of(free=True)
    term = term_of(stage, view="adv", moves="target")
    kept: list[Any] = []
    forward = term.forward
    term.forward = lambda step: kept.append(step.get(View("adv"))) or forward(step)  # type: ignore
    term.needs = (*term.needs, View("adv"))
    found = run(stage, term, passes=2)
    delta = kept[-1].delta.detach()
    assert float(delta.abs().max()) > 0
    hat, _ = by_hand(stage, found.steps[0], "target")
    noised, grid = found.steps[0].get(View("clean")), stage.build.times
    assert isinstance(grid, ConsistencyGrid)
    t = grid.before(noised.t, 0)
    role = stage.scene.roles["target"]
    x = noised.x0 + expand(t, noised.x0) * noised.eps + delta
    goal = grid.function(role.wear(role.module, x, t), t)
    wanted = (hat - goal).square().mean(1).detach()
    torch.testing.assert_close(found.losses["c"], wanted, rtol=1e-9, atol=1e-12)


def test_student_as_target_can_be_moved_and_trains_nothing_through_itself() -> None:
    """Option B with a stop-gradient target: delta learns, the label's weights do not."""
    stage = stage_of(free=True)
    term = term_of(stage, view="adv", moves="target", target="student")
    plain = stage_of()
    wanted = run(plain, term_of(plain, target="student"))
    found = run(stage, term)
    for name, grad in wanted.grads.items():
        assert torch.equal(found.grads[name], grad), name
    assert float(run(stage, term, passes=2).losses["c"].mean()) > float(found.losses["c"].mean())


@pytest.mark.parametrize("parametrization", ["eps", "x0", "v", "flow", "edm"])
def test_a_teacher_may_predict_anything(parametrization: str) -> None:
    """Its step is finite for every parametrization."""
    teacher = Model(MLP, SMALL, parametrization=parametrization, frozen=True)
    stage = stage_of(teacher=teacher)
    for solver in ("heun", "euler"):
        assert bool(run(stage, term_of(stage, "cd", solver=solver)).losses["c"].isfinite().all())


def test_distances_have_their_closed_forms() -> None:
    """On one pair of samples, and zero with a finite gradient where both agree."""
    a, b = torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double(), torch.zeros(2, 2).double()
    torch.testing.assert_close(l2(a, b), torch.tensor([2.5, 0.0]).double())
    torch.testing.assert_close(l1(a, b), torch.tensor([1.5, 0.0]).double())
    c = 0.1
    wanted = torch.tensor([(5 + c * c) ** 0.5 - c, 0.0]).double()
    torch.testing.assert_close(pseudo_huber(a, b, c), wanted)
    mean = torch.tensor([((1 + c * c) ** 0.5 + (4 + c * c) ** 0.5) / 2 - c, 0.0]).double()
    torch.testing.assert_close(pseudo_huber_mean(a, b, c), mean)
    x = a.clone().requires_grad_()
    pseudo_huber(x, a).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 0).all())


NOBODY = Model(MLP, SMALL, parametrization="none", frozen=True)


@pytest.mark.parametrize(
    ("kind", "keys", "models", "wanted"),
    [
        ("ct", {}, {"target": net(frozen=True)}, "'target' is no average of 'student', nor that"),
        ("ct", {}, {"student": NOBODY}, "model 'student' is no denoiser"),
        ("ct", {"target": "other"}, {"other": NOBODY}, "model 'other' is no denoiser"),
        ("cd", {}, {"teacher": NOBODY}, "model 'teacher' is no denoiser"),
        ("cd", {}, {"teacher": net()}, "'teacher' is trained, and a teacher has to stay as it is"),
        ("cd", {"teacher": "target"}, {}, "'target' is trained, and a teacher has to stay"),
        ("ct", {"moves": "target"}, {}, "'target' is to move, and 'clean' is no perturbed view"),
        ("ct", {"moves": "both"}, {}, "'both' is to move, and 'clean' is no perturbed view"),
        ("ct", {"view": "image"}, {}, "'image' is a view of images, which lie on no trajectory"),
        (
            "ct",
            {},
            {"student": Model(MLP, SMALL, parametrization="edm", sigma_data=0.7)},
            "model 'student' has sigma_data 0.7, the grid has 0.5",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    kind: str, keys: dict[str, Any], models: dict[str, Model], wanted: str
) -> None:
    """Before the run, in one line with the key."""
    if "student" in models and "target" not in models:
        models = {**models, "target": evolve(models["student"], follows="student")}
    stage = stage_of(**models)
    with pytest.raises(RecipeError, match=wanted) as caught:
        term_of(stage, kind, **keys)
    assert "terms.consistency." in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_times_without_a_grid_are_refused() -> None:
    """A law of times that knows no neighbours is named with its mend."""
    stage = build_stage(data=DATA, models={"student": net(), "target": net(follows="student")})
    with pytest.raises(RecipeError, match=re.escape('sampler = { use = "consistency-grid" }')):
        term_of(stage)
