"""Generator and discriminator in one step: one rollout, whose gradient, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from advdiff_adt.judging import JudgeSettings
from advdiff_adt.pixels import Patch
from advdiff_adt.rollout import Rollout
from advdiff_adt.siamese import Siamese
from advdiff_adt.terms import Adversarial
from advdiff_adt.terms_discriminate import R1, Discriminate, Slope
from advdiff_toys.networks import ToyCritic, ToyNet
from helpers_adt_players import DATA, Eyes, adversarial, entered, images, players, stage
from torch import Tensor

from advdiff_core import DataInfo, RecipeError, Scores, TapInfo
from advdiff_core.settings import Spec
from advdiff_core.step.plan import rehearse
from advdiff_core.terms import Denoise
from advdiff_core.testing import Model, Turn, build_stage, run_step
from advdiff_core.testing.steps import Stage
from advdiff_core.types import Cost

#: Steps of the path, all of which are run.
STEPS = 4
FIXED = {"start": "fixed", "first": 0, "augment": ()}
SMALL = {"width": 4, "hidden": 4}


def owners(grads: Mapping[str, Tensor]) -> set[str]:
    """Roles that got a gradient."""
    return {name.split(".")[1] for name, grad in grads.items() if bool(grad.abs().sum() > 0)}


@pytest.mark.parametrize("augment", [(), ("color", "translation", "cutout")])
@pytest.mark.parametrize("index", [0, 1, 4, 5])
def test_the_generator_acts_every_fifth_step_on_a_rollout_that_is_made_once(
    index: int, augment: tuple[str, ...]
) -> None:
    """N forwards in any step: those of the discriminator's phase serve the generator's."""
    made = stage(keys=SMALL, **{**FIXED, "augment": augment})
    result = run_step(made, players(made, every=5), images(), index=index)
    assert result.counted == result.planned
    acts = index % 5 == 0
    # One more forward is that of the denoising loss.
    assert result.counted["student"].forwards == STEPS + acts
    assert result.counted["student"].parameter_backwards == acts
    # Real and generated for its own loss, generated again as it is after its update.
    assert result.counted["discriminator"] == Cost(2 + acts, int(acts), 1)
    assert owners(result.grads) == ({"student", "discriminator"} if acts else {"discriminator"})


def test_a_step_of_the_discriminator_alone_builds_no_graph_of_the_generator() -> None:
    """The rollout has none where the generator does not act, and one where it does."""
    made = stage(keys=SMALL, **FIXED)
    turns = players(made, every=5)
    query = turns[0].terms["discriminate"].needs[1].of  # type: ignore[attr-defined]
    assert isinstance(query, Rollout)
    for index, wanted in ((0, True), (1, False)):
        due = [turn for turn in turns if index % turn.every == 0]
        step = made.step(made.plan(turns), images(), index=index)
        for role in made.scene.roles.values():
            role.module.double()
        step.enter(due[0].phase(), [turn.phase() for turn in due[1:]])
        step.prepare(due[0].phase().needs)
        assert step._memo[query].requires_grad is wanted
        # Whoever is not its owner gets it without.
        assert not step.get(query).requires_grad


def test_both_terms_ask_for_one_rollout_and_one_score() -> None:
    """Equal settings are equal queries: the generator's score is one of the discriminator's."""
    made = stage(keys=SMALL, **FIXED)
    judged, generator = players(made)
    fake = generator.terms["adversarial"].needs
    assert fake[0] in judged.terms["discriminate"].needs
    rollouts = {
        query for query in made.plan([judged, generator]).order if isinstance(query, Rollout)
    }
    assert len(rollouts) == 1


@pytest.mark.parametrize("micro", [0, 2])
def test_losses_of_both_players_are_those_written_by_hand(micro: int) -> None:
    """Hinge of the scores of (x0, x0) and (x0_hat, x0), and minus the score of (x0_hat, x0)."""
    made = stage(keys=SMALL, **FIXED)
    result = run_step(made, players(made), images(), micro=micro)
    judge: Any = made.scene.roles["discriminator"].module
    fake = torch.cat([step.get(_rollout(step)) for step in result.steps]).detach()
    with torch.no_grad():
        real, generated = judge(images(), reference=images()), judge(fake, reference=images())
    wanted = (1 - real).relu() + (1 + generated).relu()
    torch.testing.assert_close(result.losses["discriminate"], wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.losses["adversarial"], -generated, rtol=1e-10, atol=1e-12)


def _rollout(step: Any) -> Rollout:
    return next(query for query in step.plan.order if isinstance(query, Rollout))


def test_a_moved_discriminator_judges_the_generator_in_the_same_step() -> None:
    """Its player acts first, by its name; the rollout stays, the score is made anew."""
    losses = []
    for rate in (0.0, 0.5):
        made = stage(keys=SMALL, **FIXED)
        judged, generator = players(made)
        turns = [Turn("discriminator", judged.terms, rate=rate), generator]
        losses.append(run_step(made, turns, images()).losses)
    assert torch.equal(losses[0]["discriminate"], losses[1]["discriminate"])
    assert not torch.equal(losses[0]["adversarial"], losses[1]["adversarial"])


def test_twins_follow_the_updates_of_the_discriminator_alone() -> None:
    """Once a step, also where the generator acts as well."""
    made = stage(keys={**SMALL, "tau": 0.9}, **FIXED)
    judge: Any = made.scene.roles["discriminator"].module.double()
    wanted = [p.detach().clone() for p in judge.twins.parameters()]
    for index in range(3):
        run_step(made, players(made, every=2, rate=0.3), images(), index=index)
        heads = list(judge.heads.parameters())
        wanted = [0.9 * a + 0.1 * b.detach() for a, b in zip(wanted, heads, strict=True)]
    for found, one in zip(judge.twins.parameters(), wanted, strict=True):
        torch.testing.assert_close(found.detach(), one, rtol=1e-10, atol=1e-12)


def linear_stage(**term: Any) -> Stage:
    """A judge that is one hidden layer, on three numbers."""
    models = {
        "student": Model(ToyNet),
        "discriminator": Model(
            ToyCritic, kind="discriminator", recompute=bool(term.pop("recompute", 0))
        ),
    }
    data = DataInfo(shape=(3,), count=64)
    return build_stage(data=data, models=models, terms={"adversarial": adversarial(**term)})


@pytest.mark.parametrize("at", ["real", "generated"])
@pytest.mark.parametrize("recompute", [False, True])
def test_r1_is_half_the_squared_gradient_of_the_score(at: str, recompute: bool) -> None:
    """By hand for tanh(W x + b) v, with its gradient towards the weights by differences."""
    made = linear_stage(**FIXED, recompute=recompute)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    term = made.make(R1, R1.Settings(at=at))
    result = run_step(made, [Turn("discriminator", {"r1": term})], x)
    assert result.counted == result.planned
    judge: Any = made.scene.roles["discriminator"].module
    seen = x if at == "real" else result.steps[0].get(_rollout(result.steps[0]))

    def by_hand() -> Tensor:
        # It sees the difference from its reference.
        h = torch.tanh((seen - x) @ judge.net[0].weight.T + judge.net[0].bias)
        slope = ((1 - h.square()) * judge.net[2].weight) @ judge.net[0].weight
        return slope.square().sum(1) / 2

    wanted = by_hand()
    torch.testing.assert_close(result.losses["r1"], wanted.detach(), rtol=1e-10, atol=1e-12)
    grads = torch.autograd.grad(wanted.mean(), [judge.net[0].weight, judge.net[2].weight])
    for name, grad in zip(("net.0.weight", "net.2.weight"), grads, strict=True):
        found = result.grads[f"models.discriminator.{name}"]
        torch.testing.assert_close(found, grad, rtol=1e-9, atol=1e-12)
    assert owners(result.grads) == {"discriminator"}


def test_r1_costs_a_forward_and_a_backward_more() -> None:
    """What the plan says of the two terms together."""
    made = stage(keys=SMALL, **FIXED)
    judged = made.make(Discriminate), made.make(R1)
    turn = Turn("discriminator", {"discriminate": judged[0], "r1": judged[1]})
    result = run_step(made, [turn], images())
    assert result.counted == result.planned
    assert result.counted["discriminator"] == Cost(3, 1, 1)
    assert result.counted["student"] == Cost(STEPS, 0, 0)


def test_r1_of_a_siamese_judge_reaches_its_heads_through_the_frozen_network() -> None:
    """And equals a penalty taken by differences of scores towards the image."""
    made = stage(keys=SMALL, **FIXED)
    term = made.make(R1)
    step = entered(made, images(2), "discriminator", *term.needs)
    loss = term(step)
    judge: Any = made.scene.roles["discriminator"].module
    x, width = images(2), 1e-6
    total = torch.zeros(2, dtype=torch.float64)
    for place in range(64):
        shift = torch.zeros(1, 64, dtype=torch.float64)
        shift[0, place] = width
        with torch.no_grad():
            moved = [judge(x + s * shift.reshape(1, 1, 8, 8), reference=x) for s in (1, -1)]
        total += ((moved[0] - moved[1]) / (2 * width)).square()
    torch.testing.assert_close(loss.detach(), total / 2, rtol=1e-5, atol=1e-12)
    loss.sum().backward()
    assert all(p.grad is not None for p in judge.heads.parameters())
    assert all(p.grad is None for p in made.scene.roles["encoder"].module.parameters())


def test_a_rehearsal_without_shared_graphs_counts_a_rollout_for_each_player() -> None:
    """With micro-batches the generator's phase runs its own."""
    made = stage(keys=SMALL, **FIXED)
    turns = players(made)
    apart = rehearse(made.plan(turns), ["discriminator", "student"], share=False).roles
    assert apart["student"].forwards == 2 * STEPS + 1
    result = run_step(made, turns, images(), micro=2)
    for role, cost in apart.items():
        assert result.counted[role] == cost + cost


class _Fused(Eyes):
    """A network whose attention has no second derivative."""

    supports_double_backward = False


def fault_of(build: Any) -> Any:
    """The one fault that building raises."""
    with pytest.raises(RecipeError) as caught:
        build()
    (fault,) = caught.value.faults
    assert fault.code == "R10"
    return fault


def test_r1_names_the_attention_that_has_no_second_derivative() -> None:
    """With the key that mends it."""
    models = {
        "student": Model(ToyNet),
        "encoder": Model(_Fused, parametrization="none", frozen=True),
        "discriminator": Model(Siamese, kind="discriminator"),
    }
    made = build_stage(data=DATA, models=models, terms={"adversarial": adversarial(**FIXED)})
    fault = fault_of(lambda: made.make(R1, path="terms.r1"))
    assert fault.key == "terms.r1.of"
    assert "model 'discriminator' has none: fused attention or compiling" in fault.message
    assert fault.message.endswith("takes them from encoder")
    assert 'attention_kernel = "math" and compile = false in models.encoder' in fault.fix


def test_r1_of_a_judge_without_frozen_network_can_only_be_taken_out() -> None:
    """Nothing else is to blame."""

    class Once(ToyCritic):
        """A judge whose gradient has no gradient."""

        supports_double_backward = False

    models = {"student": Model(ToyNet), "discriminator": Model(Once, kind="discriminator")}
    data = DataInfo(shape=(3,), count=64)
    made = build_stage(data=data, models=models, terms={"adversarial": adversarial(**FIXED)})
    fault = fault_of(lambda: made.make(R1))
    assert fault.message == "R1 needs second derivatives, and model 'discriminator' has none"
    assert fault.fix == "write compile = false in models.discriminator, or drop this term"


def test_discriminate_asks_for_a_term_whose_rollout_is_judged() -> None:
    """Another term, or none, is refused with those that would do."""
    other = Spec(kind="loss_term", use="denoise", settings=Denoise.Settings(), component=Denoise)
    models = {"student": Model(ToyNet), "discriminator": Model(Patch, kind="discriminator")}
    terms = {"tune": adversarial(**FIXED), "denoise": other}
    made = build_stage(data=DATA, models=models, terms=terms)
    fault = fault_of(lambda: made.make(Discriminate, path="terms.d"))
    assert (fault.key, fault.fix) == ("terms.d.of", "name one of: tune")
    assert "'adversarial' is no term" in fault.message
    keys = Discriminate.Settings(of="denoise")
    assert (
        "'denoise' is 'denoise', wanted" in fault_of(lambda: made.make(Discriminate, keys)).message
    )
    alone = build_stage(data=DATA, models=models)
    assert fault_of(lambda: alone.make(Discriminate)).fix == "add a term adversarial"


def test_faults_of_the_generators_keys_are_found_at_its_own_table() -> None:
    """A judge that is none, augmented points: by either term, at the generator's keys."""
    models = {"student": Model(ToyNet), "discriminator": Model(Patch, kind="discriminator")}
    wrong = {**FIXED, "judge": "student"}
    made = build_stage(data=DATA, models=models, terms={"adversarial": adversarial(**wrong)})
    fault = fault_of(lambda: made.make(Discriminate, path="terms.d"))
    assert fault.key == "terms.adversarial.judge"
    assert fault.message == "model 'student' is a backbone"
    made = linear_stage(**{**FIXED, "augment": ("color",)})
    fault = fault_of(lambda: made.make(Discriminate, path="terms.d"))
    assert (fault.key, fault.fix) == ("terms.adversarial.augment", "write augment = []")


def test_logistic_scores_have_a_scale() -> None:
    """Softplus of scaled scores, for both players."""
    made = stage(keys=SMALL, **FIXED, loss="logistic", scale=5.0)
    result = run_step(made, players(made), images())
    judge: Any = made.scene.roles["discriminator"].module
    fake = result.steps[0].get(_rollout(result.steps[0])).detach()
    with torch.no_grad():
        real, generated = (5 * judge(x, reference=images()) for x in (images(), fake))
    softplus = torch.nn.functional.softplus
    wanted = softplus(-real) + softplus(generated)
    torch.testing.assert_close(result.losses["discriminate"], wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result.losses["adversarial"], softplus(-generated))
    assert isinstance(made.build.terms["adversarial"].settings, JudgeSettings)


def test_slopes_and_scores_share_their_images() -> None:
    """A slope reads what its score reads, and nothing else."""
    made = stage(keys=SMALL, **FIXED)
    term = made.make(R1)
    (slope,) = term.needs
    assert isinstance(slope, Slope)
    assert isinstance(slope.scores, Scores)
    assert set(slope.needs(made.scene)) == set(slope.scores.needs(made.scene))
    assert isinstance(made.scene.roles["encoder"].info.taps["map"], TapInfo)
    assert isinstance(made.make(Adversarial, made.build.terms["adversarial"].settings), Adversarial)
