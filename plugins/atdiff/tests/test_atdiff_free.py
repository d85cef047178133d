"""Free and projected perturbations in a step: sizes, targets, and what they make grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_atdiff.perturbations import PGD, Free
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core import Build, DataInfo, Forward, LossTerm, Noised, NoiseSchedule, Step, View
from advdiff_core.backbones.mlp import MLP
from advdiff_core.math.parametrization import edm_scales, edm_target
from advdiff_core.schedules import EDM, VE, Flow, VPCosine, VPLinear
from advdiff_core.settings import Spec
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(6,), count=64)
POINTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
SCHEDULES = [VPLinear, VPCosine, EDM, VE, Flow]


def stage(
    use: Any = Free,
    worn: str = "eps",
    schedule: type[NoiseSchedule] = VPCosine,
    **keys: Any,
) -> Stage:
    """A denoiser whose weights are not zero anywhere, and a moved view."""
    made = schedule(schedule.Settings(), Build())
    model = Model(MLP, MLP.Settings(width=16, blocks=1), parametrization=worn)
    view = Moved("clean", use, use.Settings(**keys))
    whole = build_stage(data=DATA, models={"student": model}, views={"adv": view}, schedule=made)
    generator = torch.Generator().manual_seed(1)
    module = whole.scene.roles["student"].module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * noise)
    return whole


class Watched(LossTerm):
    """The denoising loss of the moved view; keeps the view of each pass."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.inner = Denoise(Denoise.Settings(view="adv"), build)
        self.needs = (*self.inner.needs, View("clean"))
        self.views: list[Noised] = []
        self.clean: list[Noised] = []

    def forward(self, step: Step) -> Tensor:
        """The loss [B]."""
        self.views.append(step.get(View("adv")))
        self.clean.append(step.get(View("clean")))
        loss: Tensor = self.inner(step)
        return loss


def trained(made: Stage, passes: int, weight: float = 1.0, **turn: Any) -> Watched:
    """What a step of so many passes saw."""
    term = made.make(Watched)
    one = Turn("student", {"t": term}, passes=passes, weights={"t": weight}, moves=True, **turn)
    run_step(made, [one], POINTS)
    return term


def deltas(term: Watched) -> list[Tensor]:
    """Delta [B, 6] of each pass."""
    return [view.delta.detach() for view in term.views if view.delta is not None]


@examples(max_examples=20)
@given(
    passes=st.integers(1, 6), alpha=st.floats(0.001, 2.0),
    norm=st.sampled_from(("l2", "linf", "l1")), rho=st.floats(0.001, 1.0),
)  # fmt: skip
def test_delta_is_at_most_as_long_as_its_steps(
    passes: int, alpha: float, norm: str, rho: float
) -> None:
    """|delta|_2 <= (K - 1) alpha in every norm, while the weights move; zero in the first pass."""
    found = deltas(trained(stage(alpha=alpha, norm=norm, rho=rho), passes, rate=0.1))
    assert len(found) == passes
    assert not found[0].any()
    for number, delta in enumerate(found):
        assert (delta.norm(dim=1) <= number * alpha * (1 + 1e-9)).all()


def test_three_passes_move_by_two_steps_that_agree() -> None:
    """Twice alpha at most, never held back by the ball; samples, times and noise stay."""
    term = trained(stage(alpha=0.01, rho=0.1), 3, rate=1e-3)
    second, third = deltas(term)[1:]
    torch.testing.assert_close(second.norm(dim=1), torch.full((8,), 0.01, dtype=torch.float64))
    assert (third.norm(dim=1) > 0.015).all()
    for view, clean in zip(term.views, term.clean, strict=True):
        assert torch.equal(clean.x_t, term.clean[0].x_t)
        assert torch.equal(view.t, term.clean[0].t)
        assert torch.equal(view.x0, POINTS)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("weight", [2.0**-20, 2.0**20])
def test_a_loss_times_a_power_of_two_gives_the_same_delta(norm: str, weight: float) -> None:
    """Through the training backward itself, bit for bit: no scale of a loss can undo the attack."""
    plain, scaled = (deltas(trained(stage(norm=norm), 4, w)) for w in (1.0, weight))
    for one, other in zip(plain, scaled, strict=True):
        assert torch.equal(one, other)
    assert plain[-1].any()


@pytest.mark.parametrize("worn", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_moved_target_keeps_x0(schedule: type[NoiseSchedule], worn: str) -> None:
    """In every parametrization the moved truth, read at the moved input, is the clean sample."""
    made = stage(schedule=schedule, worn=worn, alpha=0.3, rho=1.0)
    term = trained(made, 3, rate=0.01)
    view, clean = term.views[-1], term.clean[-1]
    x_t, a, s = view.x_t.detach(), view.alpha, view.sigma
    delta, eps = view.delta.detach(), view.eps.detach()
    assert (delta.norm(dim=1) > 0.1).all()
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(a * POINTS + s * eps, x_t, **close)
    truths = {kind: view.truth(kind).detach() for kind in ("eps", "x0", "v", "flow")}
    assert torch.equal(truths["x0"], POINTS)
    before = {kind: clean.truth(kind) for kind in truths}
    moved = {"eps": delta / s, "x0": 0 * delta, "v": a * delta / s, "flow": delta / s}
    for kind, truth in truths.items():
        torch.testing.assert_close(truth, before[kind] + moved[kind], **close)
    c = edm_scales(a, s, 1.0)
    target = edm_target(POINTS, x_t, a, s, 1.0)
    shift = target - edm_target(POINTS, clean.x_t, a, s, 1.0)
    torch.testing.assert_close(shift, -c.c_skip / c.c_out * delta, **close)


def test_a_fixed_target_stays() -> None:
    """Then eps is the target at the moved input, too; ADM-IP with an adversary for noise."""
    term = trained(stage(target="fixed", alpha=0.3, rho=1.0), 3)
    assert torch.equal(term.views[-1].eps, term.clean[-1].eps)
    assert not torch.equal(term.views[-1].x_t.detach(), term.clean[-1].x_t)


def loss_at(made: Stage, view: Noised, delta: Tensor, *, moved: bool = True) -> Tensor:
    """Denoising loss [B] of the student at a displacement, by hand."""
    role = made.scene.roles["student"]
    x_t = view.x_t + delta
    eps = view.eps + delta / view.sigma if moved else view.eps
    found = role.wear(role.module, x_t, view.t, None)
    return (found.value - view._replace(eps=eps).truth(found.kind)).square().flatten(1).sum(1)


@pytest.mark.parametrize("target", ["moved", "fixed"])
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
@pytest.mark.parametrize("worn", ["eps", "v", "edm"])
def test_delta_climbs_the_loss_that_is_trained(worn: str, norm: str, target: str) -> None:
    """A short step raises it for every sample: `full` is the ascent of equation (14)."""
    keys = {"worn": worn, "norm": norm, "target": target, "alpha": 1e-4}
    made = stage(**keys)
    term = trained(made, 2)
    clean, delta = term.clean[0], deltas(term)[1]
    lost = [loss_at(made, clean, d, moved=target == "moved") for d in (0 * delta, delta)]
    assert (lost[1] > lost[0]).all()


@pytest.mark.parametrize("radius", ["constant", "neighbours"])
@pytest.mark.parametrize(
    "keys",
    [{}, {"norm": "linf"}, {"norm": "l1", "top": 2}, {"target": "fixed"}, {"ascent": "frozen"}],
)
def test_free_at_weights_that_rest_is_pgd(keys: dict[str, Any], radius: str) -> None:
    """K passes that move no weight find the delta of K - 1 projected steps, whatever the keys."""
    keys = {"alpha": 0.2, "rho": 0.06, "radius": radius, **keys}
    free = deltas(trained(stage(**keys), 4))
    found = deltas(trained(stage(PGD, steps=3, **keys), 1))
    torch.testing.assert_close(free[-1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", ["moved", "fixed"])
def test_a_term_may_grow_instead(target: str) -> None:
    """The student's own loss by its name gives the same delta, and so does that of x0_hat.

    Which is the other one times a factor of the noise level: but where eps stays as it is, x0 is
    no longer what it explains.
    """
    by_role = deltas(trained(stage(PGD, target=target), 1))[0]
    terms = [
        Spec(kind="loss_term", use="denoise", settings=Denoise.Settings(**k), component=Denoise)
        for k in ({}, {"space": "x0"})
    ]
    found = [deltas(trained(stage(PGD, target=target, term=term), 1))[0] for term in terms]
    torch.testing.assert_close(found[0], by_role, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found[1], by_role) is (target == "moved")


def test_a_random_start_is_spread_over_its_ball_and_repeats() -> None:
    """Uniform in a share of the ball, by the view's own stream."""
    keys = {"start": "uniform", "start_scale": 0.5, "alpha": 0.0}
    first, again = (deltas(trained(stage(PGD, **keys), 1))[0] for _ in range(2))
    assert torch.equal(first, again)
    lengths = first.norm(dim=1)
    assert (lengths <= 0.5 * 0.1 * 6**0.5).all()
    assert lengths.std() > 0


@pytest.mark.parametrize(
    ("use", "passes", "expected"), [(Free, 3, Cost(3, 0, 3)), (PGD, 1, Cost(4, 3, 1))]
)
def test_passes_are_as_planned(use: Any, passes: int, expected: Cost) -> None:
    """Free: a forward and a backward per update, like plain training. PGD: K more of each."""
    made = stage(use)
    turn = Turn("student", {"t": made.make(Denoise, Denoise.Settings(view="adv"))},
                passes=passes, moves=True)  # fmt: skip
    result = run_step(made, [turn], POINTS)
    assert result.counted["student"] == result.planned["student"] == expected


def test_micro_batches_move_delta_as_the_whole_batch() -> None:
    """Each sample's direction is its own."""
    made = [stage(alpha=0.2) for _ in range(2)]
    grads = []
    for one, micro in zip(made, (0, 3), strict=True):
        term = one.make(Denoise, Denoise.Settings(view="adv"))
        turn = Turn("student", {"t": term}, passes=3, moves=True, rate=0.1)
        grads.append(run_step(one, [turn], POINTS, micro=micro).grads)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-8, atol=1e-10)


def test_radius_zero_is_plain_training_on_the_same_batch() -> None:
    """Bit for bit, whatever alpha; so is alpha = 0."""
    found = []
    for keys in ({"rho": 0.0}, {"alpha": 0.0}, {}):
        made = stage(**keys)
        term = made.make(Denoise, Denoise.Settings(view="adv" if keys else "clean"))
        turn = Turn("student", {"t": term}, passes=3, moves=True, rate=0.1)
        found.append(run_step(made, [turn], POINTS).grads)
    for grads in found[:2]:
        assert all(torch.equal(grads[name], grad) for name, grad in found[2].items())


def test_a_moved_view_may_be_moved_again() -> None:
    """A free delta on top of projected steps; x0 stays through both."""
    views = {
        "pgd": Moved("clean", PGD, PGD.Settings(steps=1)),
        "adv": Moved("pgd", Free, Free.Settings()),
    }
    model = Model(MLP, MLP.Settings(width=16, blocks=1))
    made = build_stage(data=DATA, models={"student": model}, views=views)
    term = made.make(Watched)
    run_step(made, [Turn("student", {"t": term}, passes=2, moves=True)], POINTS)
    view = term.views[-1]
    explained = view.alpha * POINTS + view.sigma * view.eps
    torch.testing.assert_close(explained, view.x_t, rtol=1e-9, atol=1e-9)
    assert Forward("student", "adv") in term.needs
