"""Players in a step: whose gradient reaches whom, and what a later player gets to see."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from advdiff_robustadv.perturbations import RayFGSM
from advdiff_robustadv.terms import Equivariance
from advdiff_toys.networks import ToyCritic, ToyNet
from advdiff_toys.perturbations import ToyFree
from advdiff_toys.terms import ToyFool, ToyImitate, ToyJudge
from torch import Tensor, nn

from advdiff_core import Build, DataInfo, Forward, LossTerm, Scores, Step, X0Hat
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput
from advdiff_core.step.plan import Plan, rehearse
from advdiff_core.terms import Denoise
from advdiff_core.testing.steps import Model, Moved, Stage, StepResult, Turn, build_stage, run_step
from advdiff_core.types import Cost, TapInfo

DATA = DataInfo(shape=(3,), count=64)
ORDERS = [("student", "judge"), ("judge", "student")]


def points(size: int = 8) -> Tensor:
    """Samples [size, 3] in float64."""
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def stage(seed: int = 0, *, recompute: bool = False, **views: Moved) -> Stage:
    """A student and a judge."""
    models = {
        "student": Model(ToyNet, recompute=recompute),
        "judge": Model(ToyCritic, kind="discriminator", recompute=recompute),
    }
    return build_stage(data=DATA, models=models, views=views, seed=seed)


def turns(made: Stage, order: tuple[str, ...], **keys: object) -> list[Turn]:
    """Student (denoise and fool) and judge, in this order."""
    terms = {
        "student": {"denoise": made.make(Denoise), "fool": made.make(ToyFool)},
        "judge": {"judge": made.make(ToyJudge)},
    }
    return [Turn(name, terms[name], **(keys if name == "judge" else {})) for name in order]


def owners(result: StepResult) -> set[str]:
    """Models that got a gradient."""
    return {name.split(".")[1] for name, grad in result.grads.items() if grad.abs().sum() > 0}


@pytest.mark.parametrize("order", ORDERS)
def test_plan_foretells_two_players_in_both_orders(order: tuple[str, ...]) -> None:
    """One student forward serves both; the judge sees the fake once per player, the real once."""
    made = stage()
    result = run_step(made, turns(made, order), points())
    assert result.counted == result.planned
    assert result.counted["student"] == Cost(1, 0, 1)
    assert result.counted["judge"] == Cost(3, 1, 1)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", [0, 1])
def test_plan_foretells_a_player_that_acts_every_second_step(
    order: tuple[str, ...], index: int
) -> None:
    """In its off steps a player costs nothing and gets no gradient."""
    made = stage()
    result = run_step(made, turns(made, order, every=2), points(), index=index)
    assert result.counted == result.planned
    assert result.counted["judge"].parameter_backwards == 1 - index
    assert owners(result) == ({"student"} if index else {"student", "judge"})


@pytest.mark.parametrize("order", ORDERS)
def test_plan_foretells_a_fresh_player(order: tuple[str, ...]) -> None:
    """A fresh player has a step, and draws, of its own."""
    made = stage()
    result = run_step(made, turns(made, order, fresh=True), points())
    assert result.counted == result.planned
    assert result.counted["student"].forwards == 2
    own, shared = (step.rng("noise").normal((8, 3)) for step in reversed(result.steps))
    assert not torch.equal(own, shared)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("moves", [False, True])
def test_plan_foretells_players_with_passes_and_a_searched_view(
    order: tuple[str, ...], moves: bool
) -> None:
    """Several passes, a search and two players together."""
    made = stage(adv=Moved("clean", RayFGSM), free=Moved("clean", ToyFree))
    adv = {"equivariance": made.make(Equivariance)}
    free = ToyFool.Settings(view="free")
    student = {"denoise": made.make(Denoise), "fool": made.make(ToyFool, free), **adv}
    judged = {"judge": made.make(ToyJudge, ToyJudge.Settings(view="free"))}
    both = {
        "student": Turn("student", student, passes=2, moves=moves),
        "judge": Turn("judge", judged, passes=3, moves=moves),
    }
    result = run_step(made, [both[name] for name in order], points())
    assert result.counted == result.planned


@pytest.mark.parametrize("order", ORDERS)
def test_micro_batches_share_nothing_between_players(order: tuple[str, ...]) -> None:
    """Each micro-batch costs what the plan says of a step without sharing."""
    made = stage()
    players = turns(made, order)
    result = run_step(made, players, points(), micro=4)
    once = rehearse(made.plan(players), order, share=False).roles
    for role, cost in once.items():
        assert result.counted[role] == cost + cost
    whole = run_step(made, players, points())
    for name, grad in whole.grads.items():
        torch.testing.assert_close(result.grads[name], grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("recompute", [False, True])
def test_each_player_gets_the_gradient_of_its_own_loss_alone(
    order: tuple[str, ...], recompute: bool
) -> None:
    """Gradients equal those of two separate hand-written passes."""
    made = stage(recompute=recompute)
    result = run_step(made, turns(made, order), points())
    student, judge = (made.scene.roles[name].module for name in ("student", "judge"))
    step = result.steps[0]
    step.enter(turns(made, order)[0].phase(), [])
    noised = step.plan.order and step.get(next(q for q in step.plan.order if "View" in repr(q)))
    t, x_t, alpha, sigma = noised.t, noised.x_t, noised.alpha, noised.sigma
    eps_hat = student(x_t, 1000 * t).output
    x0_hat = (x_t - sigma * eps_hat) / alpha
    for parameter in judge.parameters():
        parameter.requires_grad_(False)
    fool = F.softplus(-judge(x0_hat)) + (eps_hat - noised.eps).square().mean(1)
    fool.mean().backward()
    for parameter in judge.parameters():
        parameter.requires_grad_(True)
    judged = F.softplus(judge(x0_hat.detach())) + F.softplus(-judge(step.x0))
    judged.mean().backward()
    for role, module in (("student", student), ("judge", judge)):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(
                result.grads[f"models.{role}.{name}"], parameter.grad, rtol=1e-10, atol=1e-14
            )


def test_a_judges_turn_reaches_the_judge_alone() -> None:
    """No gradient of its loss is left on the student, before or after the student's turn."""
    made = stage()
    for order in ORDERS:
        players = turns(made, order)
        both = run_step(made, players, points())
        alone = [run_step(made, [player], points()) for player in players]
        assert owners(both) == {"student", "judge"}
        for single, player in zip(alone, players, strict=True):
            assert owners(single) == {player.player}
            for name, grad in single.grads.items():
                torch.testing.assert_close(both.grads[name], grad, rtol=1e-12, atol=1e-15)


def test_a_frozen_model_gets_no_gradient() -> None:
    """A teacher's parameters are neither trained nor given a `.grad`."""
    models = {"student": Model(ToyNet), "teacher": Model(ToyNet, frozen=True)}
    made = build_stage(data=DATA, models=models)
    result = run_step(made, [Turn("student", {"imitate": made.make(ToyImitate)})], points())
    assert owners(result) == {"student"}
    assert result.counted["teacher"] == Cost(1, 0, 0)
    assert result.counted == result.planned
    teacher = made.scene.roles["teacher"].module
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_later_player_sees_what_the_weights_said_before_they_moved() -> None:
    """The student's sample is shared, though its weights have moved by the judge's turn."""
    made = stage()
    first = turns(made, ("student", "judge"))
    frozen = copy.deepcopy(made.scene.roles["student"].module)
    still = run_step(made, first, points())
    moved = run_step(made, [Turn("student", first[0].terms, rate=0.1), first[1]], points())
    assert torch.equal(still.losses["judge"], moved.losses["judge"])
    assert moved.counted["student"].forwards == 1
    weights = made.scene.roles["student"].module.state_dict()
    assert not torch.equal(weights["last.weight"], frozen.double().state_dict()["last.weight"])


def test_a_later_player_meets_the_moved_weights_of_an_earlier_one() -> None:
    """The student is judged by the judge as its turn left it."""
    made = stage()
    player = turns(made, ("judge", "student"))
    run_step(made, [Turn("judge", player[0].terms, rate=0.5), player[1]], points())
    after = run_step(made, [player[1]], points())
    made = stage()
    player = turns(made, ("judge", "student"))
    both = run_step(made, [Turn("judge", player[0].terms, rate=0.5), player[1]], points())
    assert torch.equal(both.losses["fool"], after.losses["fool"])


class _Both(LossTerm):
    """Scores of the student's sample, read by a third player that trains neither."""

    score = Scores("judge", X0Hat("student"))
    own = Forward("other")
    needs = (score, own)

    def forward(self, step: Step) -> Tensor:
        """Only the own network is trained by it."""
        step.get(self.score)
        return step.get(self.own).eps.square().mean(1)


@pytest.mark.parametrize("judge_frozen", [False, True])
@pytest.mark.parametrize("order", [*ORDERS, ("student",), ("judge",)])
def test_a_value_through_two_players_is_not_handed_on_to_the_second(
    order: tuple[str, ...], judge_frozen: bool
) -> None:
    """What a third player looked at lacks the graph of one of them; it must be made anew."""
    models = {
        "other": Model(ToyNet),
        "student": Model(ToyNet),
        "judge": Model(ToyCritic, kind="discriminator", frozen=judge_frozen),
    }
    made = build_stage(data=DATA, models=models)
    terms = {"student": {"fool": made.make(ToyFool)}, "judge": {"judge": made.make(ToyJudge)}}
    acting = [Turn(name, terms[name]) for name in order if name == "student" or not judge_frozen]
    result = run_step(made, [Turn("other", {"both": made.make(_Both)}), *acting], points())
    assert result.counted == result.planned
    for player in acting:
        alone = run_step(made, [player], points())
        for name, grad in alone.grads.items():
            torch.testing.assert_close(result.grads[name], grad, rtol=1e-12, atol=1e-15)
    if judge_frozen and order == ("student",):
        # Only the student trains it then: the value is whole, and shared.
        assert result.counted["judge"] == Cost(1, 1, 0)


def test_share_off_rehearses_a_forward_per_player() -> None:
    """The rule the engine uses with micro-batches."""
    made = stage()
    plan = Plan([turn.phase() for turn in turns(made, ("judge", "student"))], made.scene)
    assert rehearse(plan, ["judge", "student"]).roles["student"].forwards == 1
    assert rehearse(plan, ["judge", "student"], share=False).roles["student"].forwards == 2
    assert rehearse(plan, ["judge"]).roles["student"].parameter_backwards == 0


class Normed(Backbone):
    """A batch norm between two linear layers."""

    def __init__(self, settings: object, build: Build) -> None:
        super().__init__(settings, build)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()

    @property
    def taps(self) -> dict[str, TapInfo]:
        """None."""
        return {}

    def forward(self, x: Tensor, *_: object, **__: object) -> BackboneOutput:
        """Output [B, 3] of `x` [B, 3]."""
        return BackboneOutput(self.net(x), {})


def test_recomputed_forwards_move_running_statistics_once() -> None:
    """Batch norms see one forward, and gradients are those without recomputing."""
    results = []
    for recompute in (False, True):
        made = build_stage(data=DATA, models={"student": Model(Normed, recompute=recompute)})
        module = made.scene.roles["student"].module.train()
        grads = run_step(made, [Turn("student", {"denoise": made.make(Denoise)})], points()).grads
        results.append(({n: b.clone() for n, b in module.named_buffers()}, grads))
    (kept, grads), (again, same) = results
    assert kept["net.1.num_batches_tracked"] == again["net.1.num_batches_tracked"] == 1
    for name, buffer in kept.items():
        assert torch.equal(buffer, again[name]), name
    for name, grad in grads.items():
        torch.testing.assert_close(grad, same[name], rtol=1e-12, atol=1e-15)
