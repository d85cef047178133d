"""The alignment term: its formula, what it leaves alone, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from advdiff_dra.alignment import FeatureAlignment, penultimate, projector
from advdiff_dra.ranges import Mover
from helpers_targets import TARGET, made, module, tables
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from advdiff_core import AlignmentTarget, Build, DataInfo, Domain, Features, TapInfo, Target, View
from advdiff_core.engine.api import train
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.checkpoint import load, newest_valid, read_weights
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import ContractError, NumericsError, RecipeError
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.step.step import Place, TrainStep

SIZE = 8


def term_of(experiment: Experiment) -> FeatureAlignment:
    """The alignment term."""
    (found,) = [t.module for t in experiment.players[0].terms if t.name == "align"]
    assert isinstance(found, FeatureAlignment)
    return found


def step_of(experiment: Experiment) -> Any:
    """A step of the student's player over eight digits."""
    x, y = experiment.source.batch(torch.arange(SIZE))
    place = Place(index=0, nimg=0, start=0, size=SIZE, total=SIZE)
    step = TrainStep(experiment.scene, experiment.plan, x, y, place)
    step.enter(experiment.players[0].phase(), [])
    return step


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """By the definition, in float64."""
    a, b = a.double(), b.double()
    return (a * b).sum(-1) / (a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt())


def test_the_loss_is_one_minus_the_cosine_of_the_projected_features() -> None:
    """Of the features before the last layer at the adversarial image, for each sample."""
    experiment = made()
    step, term = step_of(experiment), term_of(experiment)
    features, target = step.get(term.features), step.get(term.targets[0])
    assert term.features == Features("student", "adv", "pooled")
    assert (features.shape, target.shape) == ((SIZE, 64), (SIZE, 16))
    first, _, second, _, third = term.projectors[0]
    h = nn.functional.silu(features @ first.weight.T + first.bias)
    h = nn.functional.silu(h @ second.weight.T + second.bias) @ third.weight.T + third.bias
    torch.testing.assert_close(term(step).double(), 1 - cosine(h, target), rtol=1e-5, atol=1e-6)


def given(term: FeatureAlignment, features: Tensor, *targets: Tensor) -> Tensor:
    """The loss [B] for these features and targets, whatever the networks say."""

    class Step:
        def get(self, query: Any) -> Tensor:
            if isinstance(query, Target):
                return targets[[t.role for t in term.targets].index(query.role)]
            return features

    loss: Tensor = term.double()(Step())
    return loss


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_does_not_feel_the_size_of_target_and_projection() -> None:
    """It lies in [0, 2], and scales cancel."""
    term = term_of(made())
    f, z = normal(9, 64), normal(9, 16, seed=1)
    loss = given(term, f, z)
    assert bool(((loss >= 0) & (loss <= 2)).all())
    torch.testing.assert_close(given(term, f, 1e3 * z), loss, rtol=1e-9, atol=1e-12)
    last = term.projectors[0][-1]
    with torch.no_grad():
        last.weight.mul_(7.0)
        last.bias.mul_(7.0)
    torch.testing.assert_close(given(term, f, z), loss, rtol=1e-9, atol=1e-12)
    h = term.projectors[0](f)
    torch.testing.assert_close(
        given(term, f, h.detach()), torch.zeros(9).double(), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(given(term, f, -h.detach()), torch.full((9,), 2.0).double())


def test_tokens_are_compared_one_by_one_and_a_vector_with_each() -> None:
    """Mean of the cosines; features with positions are averaged first for a pooled target."""
    term = term_of(made())
    tokens, z = normal(3, 5, 64), normal(3, 5, 16, seed=1)
    project = term.double().projectors[0]
    wanted = 1 - cosine(project(tokens), z).mean(1)
    torch.testing.assert_close(given(term, tokens, z), wanted)
    grid = tokens.transpose(1, 2).reshape(3, 64, 1, 5)
    torch.testing.assert_close(given(term, grid, z), wanted)
    wanted = 1 - cosine(project(tokens[:, 0])[:, None], z).mean(1)
    torch.testing.assert_close(given(term, tokens[:, 0], z), wanted)
    wanted = 1 - cosine(project(tokens.mean(1)), z[:, 0])
    torch.testing.assert_close(given(term, tokens, z[:, 0]), wanted)


SECOND = {"random": {**TARGET, "level": "random"}}


@pytest.mark.parametrize(("how", "count"), [("own", 2), ("shared", 1)])
def test_a_second_target_is_as_important_as_the_first(how: str, count: int) -> None:
    """The mean of both losses, with a projector each or one for both."""
    term = term_of(made(models=SECOND, term={"second": "random", "projector": how})).double()
    f, a, b = normal(4, 64), normal(4, 16, seed=1), normal(4, 16, seed=2)
    assert len(term.projectors) == count
    first, second = term.projectors[0], term.projectors[count - 1]
    wanted = (2 - cosine(first(f), a) - cosine(second(f), b)) / 2
    torch.testing.assert_close(given(term, f, a, b), wanted)


def test_the_projector_is_that_of_repa() -> None:
    """Three linear layers of width 2048 with SiLU between, biases, no norm."""
    made_of = [type(layer).__name__ for layer in projector(640, 2048, 256)]
    assert made_of == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    count = sum(p.numel() for p in projector(640, 2048, 256).parameters())
    assert count == 640 * 2048 + 2048 + 2048 * 2048 + 2048 + 2048 * 256 + 256
    assert FeatureAlignment.Settings().hidden == 2048


def test_the_default_tap_is_what_the_last_layer_reads() -> None:
    """The last vector; the last tap of networks without one."""
    grid, vector = TapInfo(width=3, size=(4, 4)), TapInfo(width=3)
    assert penultimate({"a": vector, "b": vector, "c": grid}) == "b"
    assert penultimate({"a": grid, "c": grid}) == "c"
    assert penultimate({}) == ""


def test_no_gradient_reaches_the_last_layer_and_every_other_one_learns() -> None:
    """What is aligned is the encoder; the projector is trained along."""
    experiment = made()
    term_of(experiment)(step_of(experiment)).mean().backward()
    student = module(experiment, "student")
    assert student.logits.weight.grad is None or not student.logits.weight.grad.any()
    assert student.init_conv.weight.grad.any()
    assert all(p.grad is not None for p in term_of(experiment).projectors.parameters())
    others = [p for role in ("teacher", "target") for p in module(experiment, role).parameters()]
    assert all(p.grad is None and not p.requires_grad for p in others)


def plain(**run: Any) -> dict[str, Any]:
    """The recipe without alignment."""
    found = tables()
    for part, names in (("models", ("teacher", "target")), ("terms", ("align",))):
        found[part] = {k: v for k, v in found[part].items() if k not in names}
    player = {**found["players"]["student"], "terms": ["trades"], "clip": 0.5}
    return {**found, "players": {"student": player}, "run": {**found["run"], **run}}


def aligned(weight: float, **run: Any) -> dict[str, Any]:
    """The recipe with it."""
    found = tables(term={"weight": weight})
    player = {**found["players"]["student"], "clip": 0.5}
    return {**found, "players": {"student": player}, "run": {**found["run"], **run}}


def checkpoint_of(run: Path) -> Path:
    """The last checkpoint of a run."""
    found, _ = newest_valid(run / "checkpoints")
    assert found is not None
    return found


def tensors_of(tree: Any) -> list[Tensor]:
    """Tensors of a nested state, in its order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def test_weight_zero_gives_the_weights_of_the_recipe_without_it(tmp_path: Path) -> None:
    """Bit for bit, after a whole run with a clipped gradient; the optimizer's state, too."""
    runs = [train(recipe_from_dict(r), out=tmp_path).run for r in (plain(), aligned(0.0))]
    first, second = (read_weights(run, "student").tensors for run in runs)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [tensors_of(load(checkpoint_of(run)).shared["optimizers"]) for run in runs]
    assert len(states[0]) > len(first) / 2, "momenta are there"
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    third = read_weights(train(recipe_from_dict(aligned(0.5)), out=tmp_path).run, "student").tensors
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_what_is_kept_of_a_classifier_has_neither_projector_nor_teacher(tmp_path: Path) -> None:
    """The weights of the role are those of the network alone."""
    run = train(recipe_from_dict(aligned(0.5, images=16)), out=tmp_path).run
    kept = read_weights(run, "student").tensors
    student = module(made(), "student")
    assert kept.keys() == {
        name for name, _ in (*student.named_parameters(), *student.named_buffers())
    }


def test_the_attack_is_that_of_training_without_it() -> None:
    """The inner maximisation knows nothing of the term: the same images, bit for bit."""
    with_it, without = made(), made(term={"weight": 0.0})
    for experiment in (with_it, without):
        experiment.scene.roles["student"].module.load_state_dict(
            module(with_it, "student").state_dict()
        )
    attacked = [step_of(e).get(View("adv")).x_t for e in (with_it, without)]
    assert torch.equal(*attacked)
    assert not torch.equal(attacked[0], step_of(with_it).x0)


def test_the_target_sees_the_clean_crop_and_never_the_attack() -> None:
    """It is handed the samples of the step as augmentation left them, in its own stream."""
    experiment = made()
    got: list[Tensor] = []
    module(experiment).register_forward_pre_hook(lambda _, inputs: got.append(inputs[0]))
    step = step_of(experiment)
    before = step.get(Target("target"))
    assert torch.equal(got[0], step.x0)
    other = step_of(experiment)
    other.get(View("adv"))
    assert torch.equal(other.get(Target("target")), before)


def test_training_changes_nothing_of_the_teacher() -> None:
    """Weights, buffers, mode; dropout is off, and its features are full floats."""
    experiment = made(teacher={"dropout": 0.5})
    state = {k: v.clone() for k, v in module(experiment, "teacher").state_dict().items()}
    trainer = Trainer(experiment, world=World(), ticks=None, stop=StopFlag())
    for _ in range(2):
        trainer.train_step()
    now = module(experiment, "teacher").state_dict()
    assert all(torch.equal(now[name], state[name]) for name in state)
    assert not module(experiment, "teacher").training
    step = step_of(experiment)
    assert step.get(Target("target")).dtype == torch.float32
    assert torch.equal(step.get(Target("target")), step_of(experiment).get(Target("target")))


class Liar(AlignmentTarget):
    """A target that gives what its test sets."""

    gives: Tensor = torch.ones(SIZE, 7)

    @property
    def width(self) -> int:
        """What it promises."""
        return 16

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Any) -> Tensor:
        """What it gives [B, ...]."""
        del x0, labels, rng
        return self.gives


@pytest.mark.parametrize(
    ("gives", "error", "message"),
    [
        (torch.ones(SIZE, 7), ContractError, "features have width 7, it promised 16"),
        (torch.full((SIZE, 16), torch.nan), NumericsError, "features are not finite"),
        (torch.full((SIZE, 16), torch.inf), NumericsError, "features are not finite"),
        (torch.ones(SIZE, 3, 16), ContractError, r"3 tokens, the tap 'layer\.2\.block\.0' has 4"),
    ],
    ids=["width", "nan", "inf", "tokens"],
)
def test_a_target_that_breaks_its_word_is_named_at_once(
    gives: Tensor, error: type[Exception], message: str
) -> None:
    """In the first step, before anything is learnt from it."""
    tap = "layer.2.block.0" if gives.dim() == 3 else ""
    experiment = made(term={"tap": tap})
    liar = Liar(Liar.Settings(), Build())
    liar.gives = gives
    experiment.scene.roles["target"].module = liar
    step, term = step_of(experiment), term_of(experiment)
    with pytest.raises(error, match=message) as caught:
        term(step)
    assert caught.value.where == "models.target"  # type: ignore[attr-defined]


def test_a_teacher_with_broken_weights_is_named() -> None:
    """The first batch tells, not the loss of a later step."""
    experiment = made()
    with torch.no_grad():
        next(module(experiment, "teacher").parameters()).fill_(torch.nan)
    with pytest.raises(NumericsError, match="features are not finite"):
        term_of(experiment)(step_of(experiment))


WIDER = {"wide": {**TARGET, "tap": "enc.8x8_conv"}}
REFUSED = {
    "no tap": (
        {"term": {"tap": "pool"}}, "terms.align.tap",
        r"model 'student' has no tap 'pool'; there are init_conv, .*, pooled", "mean 'pooled'",
    ),
    "no target": (
        {"term": {"target": "teacher"}}, "terms.align.target", "'teacher' is no alignment target",
        'kind = "alignment_target"',
    ),
    "no second target": (
        {"term": {"second": "teacher"}}, "terms.align.second", "'teacher' is no alignment target",
        'kind = "alignment_target"',
    ),
    "no backbone": (
        {"term": {"role": "target"}}, "terms.align.role", "'target' is no backbone", "is trained",
    ),
    "one projector for two widths": (
        {"models": WIDER, "term": {"second": "wide", "projector": "shared"}},
        "terms.align.projector", "'target' has 16 features and 'wide' has 8", 'projector = "own"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_term_that_does_not_fit_is_refused_in_one_line(name: str) -> None:
    """With the key, what was found and wanted, and the mend."""
    parts, key, message, fix = REFUSED[name]
    with pytest.raises(RecipeError) as caught:
        made(**parts)
    (fault,) = caught.value.faults
    assert fault.key == key
    assert re.search(message, fault.message), fault.message
    assert re.search(fix, fault.fix), fault.fix


RANGE = DataInfo(shape=(1, 8, 8), count=9, domain=Domain(-1.0, 1.0))
LATENT = DataInfo(shape=(4, 8, 8), count=9)


def known(shape: tuple[int, ...] = (1, 8, 8), low: float = -1.0) -> DataInfo:
    """What a teacher was trained on."""
    return DataInfo(shape=shape, count=0, domain=Domain(low, 1.0))


@pytest.mark.parametrize(
    ("data", "domain", "trained", "key", "message"),
    [
        (RANGE, None, known((1, 16, 16)), "teacher", "trained on 1x16x16, the data have 1x8x8"),
        (RANGE, (0.0, 1.0), known(), "domain", r"\[0, 1\], it was trained on values in \[-1, 1\]"),
        (LATENT, (0.0, 1.0), None, "domain", r"\[0, 1\], but the data have no range"),
        (RANGE, (1.0, 1.0), None, "domain", r"\[1, 1\]"),
    ],
)
def test_a_teacher_of_other_images_is_refused(
    data: DataInfo, domain: Any, trained: DataInfo | None, key: str, message: str
) -> None:
    """Of another size, or another range than the recipe says."""
    with pytest.raises(RecipeError) as caught:
        Mover(Build(path="models.target", data=data), domain, trained)
    (fault,) = caught.value.faults
    assert fault.key == f"models.target.{key}"
    assert re.search(message, fault.message), fault.message


def test_images_are_moved_to_the_range_that_a_teacher_was_trained_with() -> None:
    """Unasked where its checkpoint says so; latents stay as they are."""
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    build = Build(path="models.target", data=RANGE)
    torch.testing.assert_close(Mover(build, None, known(low=0.0))(x), (x + 1) / 2)
    assert Mover(build, None, None)(x) is x
    assert Mover(Build(data=LATENT), None, None)(x) is x
