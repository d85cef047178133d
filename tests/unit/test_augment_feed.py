"""Augmentations in the feed: the same samples however the work is cut, and who may be trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_toys.networks import ToyNet
from torch import Tensor

from advdiff_core import Augmentation, Augmented, Batch, Build, DataInfo, Dataset, Domain, Draws
from advdiff_core.draws import BLOCK, keyed_generator
from advdiff_core.engine.augment import Pipeline, check_roles
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.source import Source
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.attack import ScalarVictim
from advdiff_core.interfaces.component import ModelInfo
from advdiff_core.perturbations import _labels, _of_logits
from advdiff_core.step.scene import Role
from advdiff_core.step.step import Place, TrainStep
from advdiff_core.terms import CrossEntropy, Denoise
from advdiff_core.testing.steps import Model, Turn, build_stage

COUNT, BATCH, STEPS = 150, 70, 3


class Numbers(Dataset):
    """Sample k is (k, k) of class k mod 3."""

    def __init__(self) -> None:
        super().__init__(None, Build())

    @property
    def info(self) -> DataInfo:
        """Points of three classes."""
        return DataInfo(shape=(2,), count=COUNT, domain=Domain(0.0, 1000.0), classes=3)

    def batch(self, indices: Tensor) -> Batch:
        """The numbers themselves."""
        return Batch(indices.float()[:, None].expand(-1, 2).clone(), indices % 3)

    def fingerprint(self) -> str:
        """A name."""
        return "numbers"


class Backwards(Numbers):
    """Reads the samples of each step from the last to the first."""

    def order(self, position: int, size: int, *, batch: int, key: tuple[object, ...]) -> Tensor:
        """Mirrored inside the step."""
        places = torch.arange(position, position + size)
        return (places // batch * batch + batch - 1 - places % batch) % COUNT


class Shift(Augmentation):
    """Adds a number below 1, and tells it."""

    condition_dim = 1

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Shifted copies."""
        shift = rng.uniform((len(batch.x), 1))
        return batch._replace(x=batch.x + shift, c_augment=shift)


class Mean(Augmentation):
    """The mean of a sample and its partner."""

    mixes = True

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Mixed copies."""
        mates = rng.partners()
        assert batch.y is not None
        y = F.one_hot(batch.y, 3).float()
        return batch._replace(x=(batch.x + batch.x[mates]) / 2, y=(y + y[mates]) / 2)


def pipeline(*kinds: type[Augmentation]) -> Pipeline:
    """These augmentations, by the names of their classes."""
    parts = tuple((kind.__name__, kind(None, Build())) for kind in kinds)
    return Pipeline(parts=parts, seed=5, batch=BATCH)


def feed(augment: Pipeline, *, dataset: Dataset | None = None, **keys: Any) -> Feed:
    """A feed on the CPU."""
    source = Source(dataset or Numbers())
    return Feed(source, seed=5, place=lambda x: x, augment=augment, **keys)


def steps(made: Feed, *, cuts: tuple[int, ...] = (BATCH,)) -> list[Augmented]:
    """The parts of each step, in order."""
    found = []
    for step in range(STEPS):
        row = 0
        for size in cuts:
            position = step * BATCH + row
            found.append(made.batch(position, size, ahead=position + BATCH))
            row += size
    made.close()
    return found


def joined(parts: list[Augmented]) -> list[Tensor]:
    """The columns of all parts together."""
    columns = [[t for t in column if t is not None] for column in zip(*parts, strict=True)]
    return [torch.cat(column) for column in columns if column]


@pytest.mark.parametrize("kinds", [(Shift,), (Shift, Mean)], ids=["each", "mixing"])
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("cuts", [(BATCH,), (32, 38), (35, 35), (1, 40, 29)])
def test_samples_are_the_same_however_the_work_is_cut(
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[type[Augmentation], ...],
    cached: bool,
    workers: int,
    cuts: tuple[int, ...],
) -> None:
    """D06: workers, cache and shares of processes change no bit of samples, labels or numbers."""
    whole = joined(steps(feed(pipeline(*kinds))))
    if not cached:
        monkeypatch.setattr("advdiff_core.engine.feed.CACHE_BYTES", 0)
    parts = joined(steps(feed(pipeline(*kinds), workers=workers), cuts=cuts))
    assert len(whole) == len(parts) == 3
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one, other)


def test_changes_are_other_ones_at_each_step_stream_and_seed() -> None:
    """D07: no two samples share their numbers; a fresh player's and another run's differ, too."""
    told = joined(steps(feed(pipeline(Shift))))[2].flatten()
    assert told.unique().numel() == STEPS * BATCH
    fresh = joined(steps(feed(pipeline(Shift)).share("critic")))[2].flatten()
    assert not set(told.tolist()) & set(fresh.tolist())
    again = joined(steps(feed(pipeline(Shift))))[2].flatten()
    assert torch.equal(told, again)


def test_another_augmentation_before_it_changes_no_draw() -> None:
    """The numbers of an augmentation are keyed by its name, not by its place in the list."""
    alone = joined(steps(feed(pipeline(Shift))))[2]
    behind = joined(steps(feed(pipeline(Mean, Shift))))[2]
    assert torch.equal(alone, behind)


def test_a_dataset_may_order_the_samples_of_a_step() -> None:
    """Its answer is taken as it is, with the batch of the run."""
    made = feed(Pipeline(batch=4), dataset=Backwards())
    assert made.indices(0, 8).tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    assert made.batch(4, 2).x[:, 0].tolist() == [7.0, 6.0]


def test_partners_are_others_of_the_same_block() -> None:
    """Nobody meets itself, but a block of one; the last, short block counts."""
    total = 2 * BLOCK + 3
    mates = Draws(("key",), start=0, size=total, total=total, device="cpu").partners()
    rows = torch.arange(total)
    assert not (mates == rows).any()
    assert torch.equal(mates // BLOCK, rows // BLOCK)
    assert torch.equal(mates.sort().values, rows)
    alone = Draws(("key",), start=0, size=1, total=1, device="cpu").partners()
    assert alone.tolist() == [0]


def test_partners_of_a_part_of_a_block_are_no_question() -> None:
    """A stream that begins or ends inside a block knows no partners."""
    with pytest.raises(AssertionError, match="whole blocks"):
        Draws(("key",), start=3, size=61, total=64, device="cpu").partners()
    with pytest.raises(AssertionError, match="whole blocks"):
        Draws(("key",), start=32, size=3, total=64, device="cpu").partners()


def role(**keys: Any) -> Role:
    """A role; a trained denoiser unless told otherwise."""
    given = {"name": "student", "owner": "student", "wear": object(), **keys}
    info = ModelInfo(kind=given.pop("kind", "backbone"), frozen=given["owner"] is None)
    return Role(info=info, module=torch.nn.Identity(), **given)


INFO = DataInfo(shape=(2,), count=9, classes=3)
REFUSED = [
    (Mean, role(), INFO, "'Mean' mixes labels, and the denoiser 'student' takes whole ones"),
    (
        Mean, role(wear=None, kind="alignment_target"), INFO,
        "'Mean' mixes labels, and the alignment_target 'student' takes whole ones",
    ),
    (
        Mean, role(wear=None), DataInfo(shape=(2,), count=9),
        "'Mean' mixes labels, and the data have none",
    ),
    (Shift, role(), INFO, "'Shift' would leak into samples: 'student' is not told what was done"),
    (
        Shift, role(augment_dim=9), INFO,
        "'Shift' would leak into samples: 'student' takes 9 numbers, not 1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "who", "info", "words"), REFUSED)
def test_models_that_cannot_learn_from_it_are_refused(
    kind: type[Augmentation], who: Role, info: DataInfo, words: str
) -> None:
    """R10: mixed labels for others than classifiers; denoisers that are not told."""
    with pytest.raises(RecipeError) as caught:
        check_roles(pipeline(kind), {"student": who}, info)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key, fault.message) == ("R10", "data.augment.0.use", words)
    assert fault.fix


@pytest.mark.parametrize(
    ("kind", "who"),
    [
        (Mean, role(wear=None)), (Shift, role(augment_dim=1)), (Shift, role(owner=None)),
        (Shift, role(wear=None)),
    ],
)  # fmt: skip
def test_models_that_can_are_not(kind: type[Augmentation], who: Role) -> None:
    """Classifiers, denoisers that are told, and frozen ones."""
    check_roles(pipeline(kind), {"student": who}, INFO)


class Listener(ToyNet):
    """Writes down what it is told."""

    augment_dim = 1

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.heard: list[Tensor | None] = []

    def forward(self, *args: Any, c_augment: Tensor | None = None, **keys: Any) -> Any:
        """Hear, and run."""
        self.heard.append(c_augment)
        return super().forward(*args, **keys)


def test_step_tells_networks_that_listen_and_no_other() -> None:
    """`c_augment` reaches a backbone with `augment_dim`, in the forwards of the step."""
    models = {"student": Model(Listener), "teacher": Model(ToyNet, frozen=True)}
    made = build_stage(data=INFO, models=models, views={})
    made.scene.roles["student"].augment_dim = 1
    terms = {
        "own": made.make(Denoise),
        "other": made.make(Denoise, Denoise.Settings(role="teacher")),
    }
    plan = made.plan([Turn("student", terms)])
    place = Place(index=0, nimg=0, start=0, size=4, total=4)
    told = torch.rand(4, 1, generator=keyed_generator("told"))
    step = TrainStep(made.scene, plan, torch.ones(4, 2), None, place)
    step.c_augment = told
    for term in terms.values():
        term(step)
    (heard,) = made.scene.roles["student"].module.heard
    assert torch.equal(heard, told)
    assert step.at("clean", torch.ones(4, 2)).c_augment is told


def test_cross_entropy_takes_probabilities() -> None:
    """Labels [B, K] of mixed samples weigh the log-probabilities of the classes."""
    logits = torch.randn(4, 3, generator=keyed_generator("logits"))
    y = torch.tensor([[0.25, 0.75, 0.0]]).expand(4, 3)
    term = CrossEntropy(CrossEntropy.Settings(), Build())

    class Asked:
        """A step that knows the logits."""

        def __init__(self) -> None:
            self.y = y

        def get(self, query: object) -> Tensor:
            """Logits."""
            del query
            return logits

    expected = -(y * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(term.forward(Asked()), expected)


def test_attacks_count_a_mixed_sample_by_its_larger_part() -> None:
    """A sample of class 1 at 0.75 is broken when another class wins."""
    y = torch.tensor([[0.25, 0.75], [0.25, 0.75]])
    victim = ScalarVictim(function=lambda x: x, scalar=_of_logits(y, None), labels=_labels(y))
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert victim.broken(logits).tolist() == [False, True]
    assert victim.loss(logits).shape == (2,)
