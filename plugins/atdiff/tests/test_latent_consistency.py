"""Latent consistency distillation against its published formulas, and what a step of it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from advdiff_atdiff.latent_consistency import LatentConsistency
from advdiff_atdiff.latent_grid import LatentGrid
from advdiff_atdiff.latent_queries import Guidance, GuidedEarlier, GuidedHat, GuidedTarget
from advdiff_atdiff.perturbations import Free
from attrs import evolve
from torch import Tensor

from advdiff_core import Build, Cost, DataInfo, ModelInfo, RecipeError, Times, View, ViewInfo
from advdiff_core.backbones.mlp import MLP
from advdiff_core.schedules import EDM, VPLinear
from advdiff_core.step.queries import DrawnTimes
from advdiff_core.testing import Drawn, Model, Moved, Turn, build_stage, run_step

DATA = DataInfo(shape=(3,), count=64, classes=4)
SCHEDULE = VPLinear(VPLinear.Settings(), Build())
Keys = LatentConsistency.Settings


def grid(**keys: Any) -> LatentGrid:
    """A grid on the 1000 times of DDPM."""
    return LatentGrid(LatentGrid.Settings(**keys), Build(schedule=SCHEDULE))


def network(*, guided: bool = False, **keys: Any) -> Model:
    """A small network that knows labels."""
    return Model(MLP, MLP.Settings(width=8, blocks=1, conditional=True, guided=guided), **keys)


def staged(*, guided: bool = True, teacher: str = "eps") -> Any:
    """Student, its average, and a frozen teacher, all with weights that matter, in float64."""
    models = {
        "student": network(guided=guided),
        "target": network(guided=guided, frozen=True, follows="student"),
        "teacher": network(frozen=True, parametrization=teacher),
    }  # fmt: skip
    free = Moved("clean", Free, Free.Settings(target="fixed", alpha=0.5, rho=1.0))
    stage = build_stage(
        data=DATA, models=models, views={"adv": free}, schedule=SCHEDULE, times=Drawn(LatentGrid)
    )
    for number, role in enumerate(stage.scene.roles.values()):
        noise = torch.Generator().manual_seed(number)
        for parameter in role.module.double().parameters():
            moved = 0.3 * torch.randn(parameter.shape, generator=noise)
            parameter.data.add_(moved.to(parameter))
    return stage


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    """Samples [B, 3] and labels [B]."""
    noise = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, generator=noise).double(), torch.arange(count) % 4


def step_of(stage: Any, term: LatentConsistency, count: int = 6) -> Any:
    """A step of the student's player with this term."""
    x, y = batch(count)
    turn = Turn("student", {"term": term})
    step = stage.step(stage.plan([turn]), x, y)
    step.enter(turn.phase(), [])
    return step


# The grid.


def test_the_grid_is_that_of_the_released_code() -> None:
    """Fifty DDIM times 19, 39, ..., 999, each as likely; one step leads to the one before, or 0."""
    found = grid()
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    t = found.draw(u, 0).t
    index = (t * 1000).round().long() - 1
    wanted = np.arange(1, 51) * 20 - 1
    assert index.unique().tolist() == wanted.tolist()
    assert torch.bincount(index)[index.unique()].tolist() == [100] * 50
    before = (found.before(t, 0) * 1000).round().long() - 1
    assert before.tolist() == np.maximum(index.numpy() - 20, 0).tolist()
    assert found.draw(u, 0).weight is None
    assert found.levels(0) == found.levels(10**9) == 50


def test_times_of_single_precision_are_recognised() -> None:
    """In float32, as in training, the time before is that of float64, rounded."""
    found = grid()
    t = found.draw(torch.arange(50, dtype=torch.float64) / 50, 0).t
    assert torch.equal(found.before(t.float(), 0), found.before(t, 0).float())
    assert found.before(t[:1], 0).item() == SCHEDULE.t_min


@pytest.mark.parametrize(("skip", "count"), [(1, 1000), (30, 33), (1000, 1)])
def test_any_k_makes_a_grid(skip: int, count: int) -> None:
    """As many times as fit; the last time of all is k - 1 more than the one before 0."""
    found = grid(skip=skip)
    t = found.draw(torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64), 0).t
    assert found.count == count
    assert (t * 1000).round().tolist() == [skip, skip * count]


# The formulas, read off the released code and written anew.


def test_the_earlier_point_is_that_of_the_released_solver() -> None:
    """DDIM on `cond + w (cond - uncond)`, of x0 and of eps, with tables by index."""
    stage = staged()
    term = stage.make(LatentConsistency)
    step = step_of(stage, term)
    earlier = GuidedEarlier("clean", stage.build.times, "teacher", Guidance(5.0, 15.0))
    assert term.goal.earlier == earlier
    term(step)
    place, w = step._memo[earlier], step._memo[earlier.guidance][:, None]
    view = step._memo[View("clean")]
    betas = np.linspace(1e-4, 0.02, 1000)
    products = torch.from_numpy(np.cumprod(1 - betas))
    ddim = np.arange(1, 51) * 20 - 1
    previous = torch.cat([products[:1], products[ddim[:-1]]])
    start = (view.t * 1000).round().long() - 1
    where = (start + 1) // 20 - 1
    net, level = stage.scene.roles["teacher"].module, (start + 1).double()
    alpha, sigma = products[start].sqrt()[:, None], (1 - products[start]).sqrt()[:, None]
    cond, uncond = (net(view.x_t, level, labels).output for labels in (step.y, None))
    x0s = [(view.x_t - sigma * eps) / alpha for eps in (cond, uncond)]
    x0 = x0s[0] + w * (x0s[0] - x0s[1])
    eps = cond + w * (cond - uncond)
    wanted = previous[where].sqrt()[:, None] * x0 + (1 - previous[where]).sqrt()[:, None] * eps
    torch.testing.assert_close(place.x, wanted, rtol=1e-9, atol=1e-9)
    assert not place.x.requires_grad
    assert ((w >= 5) & (w < 15)).all()
    assert len(w.unique()) == len(w)


@pytest.mark.parametrize(("distance", "keys"), [("l2", {}), ("pseudo-huber", {"huber_c": 0.2})])
def test_the_loss_is_that_of_the_released_code(distance: str, keys: Any) -> None:
    """Both ends with `c_skip x + c_out x0_hat` of timesteps times ten; both told the same w."""
    stage = staged()
    term = stage.make(LatentConsistency, Keys(distance=distance, **keys))
    step = step_of(stage, term)
    loss = term(step)
    memo = {type(query).__name__: value for query, value in step._memo.items()}
    view, place, w = memo["View"], memo["GuidedEarlier"], memo["Guidance"]

    def start(role: str, x: Tensor, t: Tensor) -> Tensor:
        n = (t * 1000).round() - 1
        c_skip = 0.25 / ((n * 10) ** 2 + 0.25)
        c_out = n * 10 / ((n * 10) ** 2 + 0.25).sqrt()
        eps = stage.scene.roles[role].module(x, n + 1, step.y, guidance=w).output
        x0 = (x - SCHEDULE.sigma(t)[:, None] * eps) / SCHEDULE.alpha(t)[:, None]
        return c_skip[:, None] * x + c_out[:, None] * x0

    gap = start("student", view.x_t, view.t) - start("target", place.x, place.t)
    wanted = gap**2 if distance == "l2" else (gap**2 + 0.04).sqrt() - 0.2
    torch.testing.assert_close(loss, wanted.mean(1), rtol=1e-8, atol=1e-9)


def test_the_target_at_time_zero_is_the_point_itself() -> None:
    """The first time of the grid leads to time 0, where f(x) = x whatever the network says."""
    stage = staged()
    step = step_of(stage, stage.make(LatentConsistency), count=200)
    step._memo[DrawnTimes()] = Times(torch.full((200,), 0.02, dtype=torch.float64))
    term = stage.make(LatentConsistency)
    term(step)
    place, goal = step._memo[term.goal.earlier], step._memo[term.goal]
    assert (place.t == SCHEDULE.t_min).all()
    assert torch.equal(goal, place.x)


def test_a_teacher_of_another_parametrization_teaches_the_same() -> None:
    """What is guided is a prediction: x0 or v, told as eps, lead to the same point."""
    points = []
    for kind in ("eps", "v"):
        stage = staged(teacher=kind)
        net = stage.scene.roles["teacher"]
        if kind == "v":
            net.module.forward = _as_v(net.module.forward)
        term = stage.make(LatentConsistency)
        step = step_of(stage, term)
        term(step)
        points.append(step._memo[term.goal.earlier].x)
    torch.testing.assert_close(points[0], points[1], rtol=1e-7, atol=1e-7)


def _as_v(forward: Any) -> Any:
    """A forward that predicts v, of one that predicts eps."""

    def run(x: Tensor, level: Tensor, *args: Any, **keys: Any) -> Any:
        out = forward(x, level, *args, **keys)
        alpha, sigma = (scale(level / 1000)[:, None] for scale in (SCHEDULE.alpha, SCHEDULE.sigma))
        x0 = (x - sigma * out.output) / alpha
        return out._replace(output=alpha * out.output - sigma * x0)

    return run


# Gradients and cost.


def test_only_the_student_learns() -> None:
    """Target and teacher get no gradient."""
    stage = staged()
    x, y = batch()
    result = run_step(stage, [Turn("student", {"lcd": stage.make(LatentConsistency)})], x, y)
    assert {name.split(".")[1] for name in result.grads} == {"student"}
    assert any("guidance" in name and grad.any() for name, grad in result.grads.items())


@pytest.mark.parametrize(
    ("moves", "passes", "units"),
    [("student", 1, 6), ("student", 3, 14), ("target", 3, 17), ("both", 3, 18)],
)
def test_a_step_costs_what_was_derived(moves: str, passes: int, units: int) -> None:
    """In forwards, a backward being two: 6 plain; with K = 3, 14 (A), 18 (C), as counted in a step.

    Option B passes a gradient through the target in each pass: 3 more, a backward to an input
    counted as one.
    """
    stage = staged()
    term = stage.make(LatentConsistency, Keys(view="adv", moves=moves))
    x, y = batch()
    result = run_step(stage, [Turn("student", {"lcd": term}, passes=passes, moves=True)], x, y)
    assert result.counted == result.planned
    total = sum(result.counted.values(), Cost())
    found = total.forwards + 2 * total.parameter_backwards + total.input_backwards
    assert found == units
    assert result.counted["teacher"].forwards == (2 * passes if moves == "both" else 2)


@pytest.mark.parametrize("moves", ["student", "target", "both"])
def test_delta_moves_what_its_option_says(moves: str) -> None:
    """A: the student's input; B: the target's, delta alone learning from it; C: both of them."""
    stage = staged()
    term = stage.make(LatentConsistency, Keys(view="adv", moves=moves))
    x, y = batch()
    turn = Turn("student", {"lcd": term}, passes=2)
    step = stage.step(stage.plan([turn]), x, y)
    phase = turn.phase()
    step.enter(phase, [])
    first = term(step)
    before = dict(step._memo.items())
    first.sum().backward()
    (leaf, _) = step._free["adv"]
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    for role in ("target", "teacher"):
        assert all(p.grad is None for p in stage.scene.roles[role].module.parameters())
    step.ascend()
    step.leave(phase, last=False)
    second = term(step)
    assert not torch.equal(first, second)
    moved = {
        type(q).__name__ for q, v in step._memo.items() if q in before and _differs(before[q], v)
    }
    assert ("GuidedHat" in moved) == (moves != "target")
    assert ("GuidedEarlier" in moved) == (moves == "both")
    assert ("GuidedTarget" in moved or "MovedGuidedTarget" in moved) == (moves != "student")


def _differs(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return not torch.equal(a, b)
    return isinstance(a, tuple) and any(
        isinstance(x, Tensor) and not torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def test_the_first_pass_is_plain_distillation_bit_for_bit() -> None:
    """Delta starts at zero."""
    losses = []
    for keys in ({}, {"view": "adv"}, {"view": "adv", "moves": "both"}):
        stage = staged()
        term = stage.make(LatentConsistency, Keys(**keys))
        losses.append(term(step_of(stage, term)).detach())
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])


# One strength for all.


def test_with_one_strength_the_student_need_not_be_told() -> None:
    """w_min = w_max: a network without an input for it learns the teacher at that strength."""
    stage = staged(guided=False)
    term = stage.make(LatentConsistency, Keys(w_min=3.0, w_max=3.0))
    assert isinstance(term.goal, GuidedTarget)
    assert term.hat == GuidedHat("student", "clean", stage.build.times.function, None)
    step = step_of(stage, term)
    assert term(step).isfinite().all()
    assert step._memo[Guidance(3.0, 3.0)].tolist() == [3.0] * 6


# What is refused.


def told(**changes: Any) -> Build:
    """What the term is told where all is well, with changes."""
    denoiser = ModelInfo(kind="backbone", frozen=True, parametrization="eps", classes=4)
    models = {
        "student": evolve(denoiser, frozen=False, guided=True),
        "target": evolve(denoiser, guided=True, follows="student"),
        "teacher": denoiser,
    }
    for role in ("student", "target", "teacher"):
        models[role] = evolve(models[role], **changes.pop(role, {}))
    views = {
        "clean": ViewInfo(base=None, root="clean"), "image": ViewInfo(base=None, root="image"),
        "adv": ViewInfo(base="clean", root="clean"),
    }  # fmt: skip
    build = Build(
        path="terms.lcd", data=DATA, schedule=SCHEDULE, times=grid(), models=models, views=views
    )
    return evolve(build, **changes)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (
        {"teacher": {"classes": 0}}, {}, "terms.lcd.teacher",
        "model 'teacher' ignores labels: nothing guides it",
    ),
    (
        {"data": DataInfo(shape=(3,), count=64)}, {}, "terms.lcd.use",
        "the data have no labels, and guidance is the difference that labels make",
    ),
    (
        {"student": {"guided": False}}, {}, "terms.lcd.role",
        "w is drawn from 5 to 15, and model 'student' cannot be told which it is",
    ),
    (
        {"teacher": {"frozen": False}}, {}, "terms.lcd.teacher",
        "model 'teacher' is trained, and a teacher has to stay as it is",
    ),
    (
        {"teacher": {"parametrization": "none"}}, {}, "terms.lcd.teacher",
        "model 'teacher' is no denoiser",
    ),
    (
        {"target": {"follows": ""}}, {}, "terms.lcd.target",
        "model 'target' is no average of 'student', nor that role itself",
    ),
    (
        {"times": None}, {}, "terms.lcd.use",
        "the recipe draws training times of which none lies k before another",
    ),
    ({}, {"view": "image"}, "terms.lcd.view", "'image' is a view of images, which lie on no traj"),
    ({}, {"moves": "both"}, "terms.lcd.moves", "'both' is to move, and 'clean' is no perturbed v"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "keys", "key", "words"), REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(
    changes: dict[str, Any], keys: dict[str, Any], key: str, words: str
) -> None:
    """R10 at the key that is wrong, with a mend."""
    LatentConsistency(Keys(), told())
    with pytest.raises(RecipeError) as caught:
        LatentConsistency(Keys(**keys), told(**changes))
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", key)
    assert fault.message.startswith(words)
    assert fault.fix


def test_an_empty_range_of_strengths_is_refused() -> None:
    """w_min above w_max."""
    with pytest.raises(ValueError, match=r"^w_max: 4.0 must be at least w_min = 5.0$"):
        Keys(w_max=4.0)


@pytest.mark.parametrize(
    ("build", "keys", "key", "words"),
    [
        (
            Build(path="times", schedule=SCHEDULE), {"skip": 1001}, "times.skip",
            "k = 1001 is more than the 1000 times of the schedule",
        ),
        (
            Build(path="times", schedule=EDM(EDM.Settings(), Build())), {}, "times.use",
            "a grid of every k-th time needs a schedule with discrete times",
        ),
        (
            Build(path="times"), {}, "times.use",
            "a grid of every k-th time needs a schedule with discrete times",
        ),
    ],
)  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(
    build: Build, keys: dict[str, Any], key: str, words: str
) -> None:
    """R10 for k beyond the schedule's times, and for continuous times."""
    with pytest.raises(RecipeError) as caught:
        LatentGrid(LatentGrid.Settings(**keys), build)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key, fault.message) == ("R10", key, words)
    assert fault.fix
