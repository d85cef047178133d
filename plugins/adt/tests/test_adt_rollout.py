"""Rollouts in a step: who pays for them, whose graph is built, and how much is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from advdiff_adt.rollout import Decoded, Real, Rollout, rollout_of
from advdiff_adt.rules import RULES
from advdiff_adt.terms import Adversarial, Reward
from advdiff_adt.terms_discriminate import Discriminate
from attrs import evolve
from helpers_adt_memory import kept_bytes, peak_bytes
from torch import Tensor

from advdiff_core import Build, DataInfo, Domain, RecipeError, Spec
from advdiff_core.backbones.mlp import MLP
from advdiff_core.backbones.unet import UNet
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from advdiff_core.step.plan import rehearse
from advdiff_core.terms import Denoise
from advdiff_core.testing.parts import BenchCritic, BenchNet
from advdiff_core.testing.steps import Model, Stage, Turn, build_stage, run_step
from advdiff_core.types import Cost

DATA = DataInfo(shape=(3,), count=64, classes=2)
IMAGES = DataInfo(shape=(1, 16, 16), count=64, domain=Domain(-1.0, 1.0))
UNET = UNet.Settings(channels=16, channel_mult=(1, 2), blocks=1, attention=())


def spec(cls: type = DDIM, path: str = "terms.adversarial.sampler", **keys: Any) -> Spec:
    """A sampler as a recipe names it."""
    return Spec(
        kind="sampler", use=cls.__name__.lower(), settings=cls.Settings(**keys), component=cls,
        path=path,
    )  # fmt: skip


def keys(cls: type = DDIM, steps: int = 5, **more: Any) -> Adversarial.Settings:
    """Settings of the generator's term, from t = T unless told otherwise."""
    made = {"sampler": spec(cls, steps=steps), "start": "fixed", "augment": (), **more}
    return Adversarial.Settings(**made)


def stage(student: Model | None = None, data: DataInfo = DATA) -> Stage:
    """A student and a discriminator."""
    student = student or Model(MLP, MLP.Settings(width=16, blocks=1), train=True)
    models = {"student": student, "discriminator": Model(BenchCritic, kind="discriminator")}
    return build_stage(data=data, models=models)


def told(made: Stage, **more: Any) -> Build:
    """What a term of a recipe is told, which can make samplers."""
    build = evolve(made.build, **more)
    return evolve(build, make=lambda one: one.component(one.settings, evolve(build, path=one.path)))


def players(made: Stage, settings: Adversarial.Settings, every: int = 1) -> list[Turn]:
    """The discriminator, then the generator, as their names have it."""
    term = Spec(kind="loss_term", use="adversarial", settings=settings, component=Adversarial)
    build = told(made, terms={"adversarial": term}, path="terms.discriminate")
    judge = {"discriminate": Discriminate(Discriminate.Settings(), build)}
    tune = {"adversarial": made.make(Adversarial, settings), "denoise": made.make(Denoise)}
    weights = {"denoise": 0.5}
    return [
        Turn("discriminator", judge),
        Turn("student", tune, weights=weights, every=every),
    ]


def samples(size: int = 4, data: DataInfo = DATA) -> Tensor:
    """Data [size, ...] in float64."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(size, *data.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("cls", "forwards"), [(DDIM, 5), (DDPM, 5), (DPMpp2M, 5), (Euler, 5), (Heun, 9)]
)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_runs_one_rollout_for_both_players(rule: str, cls: type, forwards: int) -> None:
    """The forwards of the sampler and one of `denoise`, counted and foretold, and one backward."""
    made = stage()
    turns = players(made, keys(cls, gradient=rule))
    result = run_step(made, turns, samples(), torch.zeros(4, dtype=torch.int64))
    assert result.counted == result.planned
    assert result.counted["student"] == Cost(forwards + 1, 0, 1)
    # Real and fake for its own loss, the fake again for the generator's.
    assert result.counted["discriminator"] == Cost(3, 1, 1)


def test_guidance_doubles_the_forwards_of_a_rollout() -> None:
    """Each evaluation runs with labels and without; the value is the guided one."""
    student = Model(MLP, MLP.Settings(width=8, blocks=1, conditional=True), train=True)
    made, y = stage(student), torch.tensor([0, 1, 1, 0])
    result = run_step(made, players(made, keys(guidance=2.0)), samples(), y)
    assert result.counted == result.planned
    assert result.counted["student"].forwards == 11


def test_a_start_in_the_middle_costs_what_is_left_of_the_path() -> None:
    """The plan counts the whole path; a step that starts later runs less of it."""
    made = stage()
    turns = players(made, keys(start="uniform"))
    found = {run_step(made, turns, samples(), index=n).counted["student"].forwards
             for n in range(24)}  # fmt: skip
    assert found == {2, 3, 4, 5, 6}
    assert rehearse(made.plan(turns), ("student",)).roles["student"].forwards == 6


def test_only_the_discriminator_acting_builds_no_graph_of_the_generator() -> None:
    """In the steps between the generator's, nothing is kept for a backward through the rollout."""
    made = stage()
    turns = players(made, keys(), every=5)
    for index in range(6):
        result = run_step(made, turns, samples(), index=index)
        assert result.counted == result.planned
        acts = index % 5 == 0
        assert any(name.startswith("models.student") for name in result.grads) == acts
        rollout = next(q for q in result.steps[0].plan.order if isinstance(q, Rollout))
        assert not result.steps[0].get(rollout).requires_grad
    off = made.step(made.plan(turns), samples(), index=1)
    off.enter(turns[0].phase(), [])
    kept: list[int] = []
    saving = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t)
    with saving:
        off.get(rollout)
    assert not kept


def test_judges_of_latents_see_them_decoded() -> None:
    """Rollout and data pass the frozen decoder, and the generator's gradient passes it back."""
    models = {
        "student": Model(MLP, MLP.Settings(width=16, blocks=1), train=True),
        "decoder": Model(BenchNet, parametrization="none", frozen=True),
        "discriminator": Model(BenchCritic, kind="discriminator"),
    }  # fmt: skip
    made = build_stage(data=DATA, models=models)
    judge, tune = players(made, keys(decoder="decoder"))
    turns = [judge, evolve(tune, weights={"denoise": 0.0})]
    result = run_step(made, turns, samples())
    assert result.counted == result.planned
    # Real once, generated once for both players; back through it for the generator alone.
    assert result.counted["decoder"] == Cost(2, 1, 0)
    step, decoder = result.steps[0], made.scene.roles["decoder"].module
    step.enter(turns[1].phase(), [])
    seen = [query for query in step.plan.order if isinstance(query, Decoded)]
    for query in seen:
        with torch.no_grad():
            wanted = decoder(step.get(query.of)).output
        torch.testing.assert_close(step.get(query), wanted)
    assert {type(query.of) for query in seen} == {Rollout, Real}
    tuned = [grad for name, grad in result.grads.items() if name.startswith("models.student")]
    assert max(float(grad.abs().max()) for grad in tuned) > 0


def test_rollouts_of_equal_keys_are_one_query() -> None:
    """Whatever the term's place in the recipe; another sampler or rule is another rollout."""
    build = told(stage())
    one = rollout_of(keys(), build)
    moved = evolve(keys(), sampler=spec(steps=5, path="terms.other.sampler"))
    assert one == rollout_of(moved, build)
    assert hash(one) == hash(rollout_of(moved, build))
    assert one != rollout_of(keys(steps=6), build)
    assert one != rollout_of(keys(gradient="drtune"), build)
    assert one != rollout_of(keys(Euler), build)


def test_a_plan_shows_of_a_rollout_what_is_no_default() -> None:
    """Sampler, rule and start; two rollouts that differ read differently, as plans sort by it."""
    build, clips = told(stage(data=IMAGES)), spec(steps=5, clip_x0=True)
    assert repr(rollout_of(keys(), build)) == (
        "Rollout('student', ddim(steps=5), rule=adt, start=fixed)"
    )
    whole = evolve(keys(gradient="full", start="uniform"), sampler=clips)
    assert repr(rollout_of(whole, build)) == (
        "Rollout('student', ddim(steps=5, clip_x0=True), rule=full, recomputed)"
    )


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_run_the_same_stretch(micro: int) -> None:
    """Gradients of a batch cut in parts are those of the whole batch."""
    made = stage()
    turns = players(made, keys(DDPM, start="uniform", early_stop=0.4))
    whole = run_step(made, turns, samples(), index=3).grads
    parts = run_step(made, turns, samples(), index=3, micro=micro).grads
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("rule", ["adt", "full", "last-k"])
def test_recomputing_changes_neither_gradients_nor_counts(rule: str, recompute: bool) -> None:
    """The gradient is that of a rollout that keeps its activations, dropout included."""
    student = Model(MLP, MLP.Settings(width=8, blocks=1, dropout=0.3), train=True)
    made = stage(student)
    kept = run_step(made, players(made, keys(gradient=rule, recompute=False)), samples())
    again = run_step(made, players(made, keys(gradient=rule, recompute=recompute)), samples())
    assert again.counted == kept.counted
    for name, gradient in kept.grads.items():
        assert torch.equal(again.grads[name], gradient), name


def test_full_is_recomputed_unless_told_otherwise() -> None:
    """`recompute` left out: where every step is trained, and there alone."""
    build = told(stage())
    assert rollout_of(keys(gradient="full"), build).recompute
    assert not rollout_of(keys(gradient="full", recompute=False), build).recompute
    assert not rollout_of(keys(), build).recompute


@pytest.mark.parametrize("steps", [10, 25, 50])
@pytest.mark.parametrize("rule", ["adt", "drtune"])
def test_three_trained_steps_keep_what_three_plain_forwards_do(rule: str, steps: int) -> None:
    """Within 1.15x, however long the path."""
    made, x = stage(Model(UNet, UNET, train=True), IMAGES), samples(4, IMAGES).float()
    net, t = made.scene.roles["student"].module, torch.full((4,), 500.0)
    plain = kept_bytes(lambda: torch.stack([net(x, t).output for _ in range(3)]))
    assert kept_bytes(lambda: rollout_in(made, x, steps=steps, gradient=rule)) <= 1.15 * plain


def test_memory_of_the_whole_path_grows_at_most_as_the_root_of_its_steps() -> None:
    """Recomputed, forward and backward of 40 steps peak at less than twice those of 10."""
    made, x = stage(Model(MLP, MLP.Settings(width=64, blocks=2), train=True)), samples(256)

    def peak(steps: int, recompute: bool) -> int:
        how = {"steps": steps, "gradient": "full", "recompute": recompute}
        return peak_bytes(lambda: rollout_in(made, x, **how).square().mean().backward())

    assert peak(40, recompute=True) <= 2 * peak(10, recompute=True)
    assert peak(10, recompute=False) > 3 * peak(10, recompute=True)


def rollout_in(made: Stage, x: Tensor, **more: Any) -> Tensor:
    """The rollout of a batch in which the generator alone acts."""
    made.scene.roles["student"].module.to(x.dtype)
    term = made.make(Adversarial, keys(**more))
    turn = Turn("student", {"adversarial": term})
    step = made.step(made.plan([turn]), x)
    step.enter(turn.phase(), [])
    return step.get(next(query for query in step.plan.order if isinstance(query, Rollout)))


@pytest.mark.parametrize(
    ("more", "key", "found", "mend"),
    [
        ({"gradient_steps": 6}, "gradient_steps", "6 trained steps of a path that runs 5",
         "write 5 or fewer"),
        ({"first": 3}, "gradient_steps", "3 trained steps of a path that runs 2", "2 or fewer"),
        ({"first": 5}, "first", "step 5 of a path of 5 steps is t_s = 0", "from 0 to 4"),
        ({"guidance": 1.0}, "guidance", "1, but model 'student' ignores labels", "set it to 0"),
        ({"role": "discriminator"}, "role", "model 'discriminator' is no denoiser",
         "name a backbone"),
        ({"decoder": "student"}, "decoder", "model 'student' is no frozen network from latents",
         "vae-decoder"),
    ],
)  # fmt: skip
def test_refuses_keys_that_do_not_fit(more: dict, key: str, found: str, mend: str) -> None:
    """One line that names the key, what was found and the mend."""
    with pytest.raises(RecipeError) as caught:
        stage().make(Adversarial, keys(**more), path="terms.adversarial")
    text = str(caught.value)
    assert f"terms.adversarial.{key}" in text
    assert found in text
    assert mend in text


@pytest.mark.parametrize("rule", ["adt", "drtune"])
def test_refuses_a_sampler_without_linear_steps(rule: str) -> None:
    """A clipping sampler under a rule that needs linear steps; `full` takes it."""
    made, clips = stage(data=IMAGES), spec(steps=5, clip_x0=True)
    with pytest.raises(RecipeError, match="linear in states and predictions") as caught:
        made.make(Adversarial, evolve(keys(gradient=rule), sampler=clips))
    assert "clip_x0 = false" in str(caught.value)
    made.make(Adversarial, evolve(keys(gradient="full"), sampler=clips))


def rewarded(scorer: Model, **more: Any) -> Tensor:
    """The loss of a reward on one batch."""
    models = {"student": Model(MLP, MLP.Settings(width=8, blocks=1)), "scorer": scorer}
    made = build_stage(data=DATA, models=models)
    term = made.make(Reward, Reward.Settings(sampler=spec(steps=3), start="fixed", **more))
    result = run_step(
        made, [Turn("student", {"reward": term})], samples(), torch.tensor([0, 1, 1, 0])
    )
    assert result.counted == result.planned
    assert result.counted["scorer"] == Cost(1, 1, 0)
    assert any(float(grad.abs().max()) > 0 for grad in result.grads.values())
    return result.losses["reward"]


KNOWS = Model(BenchNet, BenchNet.Settings(outputs=2), parametrization="none", frozen=True)


def test_rewards_of_a_classifier_are_log_probabilities() -> None:
    """Of the sample's label, or of one class; the two classes' probabilities sum to one."""
    label = rewarded(KNOWS)
    each = [rewarded(KNOWS, reads="class", wanted=n) for n in (0, 1)]
    total = sum((-one).exp() for one in each)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-9, atol=0.0)
    torch.testing.assert_close(label, torch.stack(each)[[0, 1, 1, 0], range(4)])


def test_reward_beyond_its_ceiling_is_worth_nothing() -> None:
    """The loss is what the reward lacks to the ceiling."""
    critic = Model(BenchCritic, kind="discriminator", frozen=True)
    plain = rewarded(critic)
    torch.testing.assert_close(rewarded(critic, ceiling=0.3), (0.3 + plain).relu())


@pytest.mark.parametrize(
    ("scorer", "more", "found"),
    [
        (KNOWS, {"reads": "score"}, "'score' is read of a discriminator, and model 'scorer'"),
        (Model(BenchCritic, kind="discriminator"), {"reads": "label"}, "is read of a classifier"),
        (KNOWS, {"reads": "class", "wanted": 2}, "class 2 of a scorer that knows 2"),
    ],
)
def test_refuses_scorers_that_have_no_such_reward(scorer: Model, more: dict, found: str) -> None:
    """What is read has to be there."""
    with pytest.raises(Exception, match=found):
        rewarded(scorer, **more)


def test_refuses_to_reward_labels_that_data_do_not_have() -> None:
    """A classifier needs the sample's label, or a class to aim at."""
    models = {"student": Model(MLP, MLP.Settings(width=8, blocks=1)), "scorer": KNOWS}
    made = build_stage(data=DataInfo(shape=(3,), count=4), models=models)
    with pytest.raises(RecipeError, match="the data have no labels") as caught:
        made.make(Reward, Reward.Settings(sampler=spec(steps=3)))
    assert 'reads = "class"' in str(caught.value)
