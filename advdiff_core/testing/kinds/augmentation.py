"""Laws of augmentations."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.draws import BLOCK
from advdiff_core.interfaces.augmentation import Augmentation
from advdiff_core.testing.bench import World, batch_of, draws, seeds
from advdiff_core.testing.compare import finite, same_bits
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject
from advdiff_core.types import Augmented

__all__ = ["LAWS"]

LAWS = Laws("augmentation")
law = LAWS.law

#: Samples of a global batch: two blocks, and a part of a third.
COUNT = 2 * BLOCK + 5


def made(subject: Subject, world: World) -> Augmentation:
    """The augmentation, built once per world."""
    found: Augmentation = subject.memo(
        ("augmentation", world.name), lambda: rig(subject).build(subject, world)
    )
    return found


def samples(world: World, first: int = 0, size: int = COUNT) -> Augmented:
    """Samples and labels of some rows of the global batch."""
    batch = batch_of(world, 0, COUNT)
    rows = slice(first, first + size)
    return Augmented(batch.x[rows].clone(), None if batch.y is None else batch.y[rows].clone())


def run(
    part: Augmentation, world: World, seed: int, first: int = 0, size: int = COUNT
) -> Augmented:
    """The augmented rows `[first, first + size)` of the global batch."""
    rng = draws(seed, size, start=first, total=COUNT)
    return part.augment(samples(world, first, size), rng)


@law("keeps-shape-and-range", world=worlds, seed=seeds())
def keeps_shape_and_range(subject: Subject, world: World, seed: int) -> None:
    """Samples keep their shape, stay float32, finite and inside the domain."""
    x = run(made(subject, world), world, seed).x
    if x.dtype != torch.float32 or tuple(x.shape) != (COUNT, *world.data.shape):
        raise wrong(
            f"{x.dtype} of shape {list(x.shape)}",
            wanted=f"float32 of shape {[COUNT, *world.data.shape]}",
            mend="return samples as large as they came",
        )
    finite(x, what="augmented samples", mend="bound the change")
    domain = world.data.domain
    if domain is None:
        return
    low, high = float(x.min()), float(x.max())
    if low < domain.low - 1e-6 or high > domain.high + 1e-6:
        raise wrong(
            f"values from {shown(low)} to {shown(high)}",
            wanted=f"inside the domain [{domain.low}, {domain.high}]",
            mend="clamp to build.data.domain, and fill with values inside it",
        )


@law("follows-its-generator", world=worlds, seed=seeds())
def follows_its_generator(subject: Subject, world: World, seed: int) -> None:
    """The same draws give the same samples, whatever the global generator; others give others."""
    part = made(subject, world)
    first = run(part, world, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        again = run(rig(subject).build(subject, world), world, seed)
    same_bits(
        again.x,
        first.x,
        what="samples augmented again",
        mend="draw from `rng` alone, and keep none",
    )
    untouched = torch.equal(first.x, samples(world).x)
    if not untouched and torch.equal(run(part, world, seed + 1000).x, first.x):
        raise wrong(
            "the same samples from other draws",
            wanted="other changes each time a sample is read",
            mend="draw from `rng`; what never changes is a corruption",
        )


@law("any-cut-of-the-batch", world=worlds, seed=seeds(), cut=st.integers(1, COUNT - 1))
def any_cut_of_the_batch(subject: Subject, world: World, seed: int, cut: int) -> None:
    """A sample comes out the same in a micro-batch and on another process, bit for bit."""
    part = made(subject, world)
    cut = max(cut // BLOCK, 1) * BLOCK if part.mixes else cut
    whole = run(part, world, seed)
    pieces = [run(part, world, seed, 0, cut), run(part, world, seed, cut, COUNT - cut)]
    for name in Augmented._fields:
        full = getattr(whole, name)
        if full is not None:
            same_bits(
                torch.cat([getattr(piece, name) for piece in pieces]),
                full,
                what=f"`{name}` augmented in two parts",
                mend="no statistics over the batch; draw with the sample axis first",
            )


@law("labels-as-declared", world=worlds, seed=seeds())
def labels_as_declared(subject: Subject, world: World, seed: int) -> None:
    """Labels stay as they are; where samples are mixed they are probabilities [B, K]."""
    part = made(subject, world)
    given, y = samples(world).y, run(part, world, seed).y
    if not part.mixes:
        if given is None or y is None:
            if y is not given:
                raise wrong("labels out of nothing", wanted="none", mend="pass labels on")
            return
        same_bits(y, given, what="labels", mend="pass labels on, or declare `mixes = True`")
        return
    assert given is not None
    _probabilities(y, given, world.data.classes)


def _probabilities(y: Tensor | None, given: Tensor, classes: int) -> None:
    shape = None if y is None else tuple(y.shape)
    if y is None or y.dtype != torch.float32 or shape != (len(given), classes):
        raise wrong(
            "no labels" if y is None else f"labels in {y.dtype} of shape {list(y.shape)}",
            wanted=f"float32 {[len(given), classes]}, as samples are mixed",
            mend="mix one-hot labels by the same shares as the samples",
        )
    sums, least = y.sum(1), float(y.min())
    if least < 0 or float((sums - 1).abs().max()) > 1e-5:
        raise wrong(
            f"labels from {shown(least)} that sum to {shown(float(sums[0]))}",
            wanted="probabilities that sum to 1",
            mend="weigh the two labels by lambda and 1 - lambda",
        )


@law("tells-what-it-did", world=worlds, seed=seeds())
def tells_what_it_did(subject: Subject, world: World, seed: int) -> None:
    """`c_augment` has the declared length; it is never zero for a changed sample."""
    part = made(subject, world)
    found = run(part, world, seed)
    told = found.c_augment
    if not part.condition_dim:
        if told is not None:
            raise wrong(
                f"c_augment of shape {list(told.shape)}, with condition_dim = 0",
                wanted="None",
                mend="declare condition_dim",
            )
        message = "it tells denoisers nothing"
        raise NotApplicable(message)
    wanted = (COUNT, part.condition_dim)
    if told is None or told.dtype != torch.float32 or tuple(told.shape) != wanted:
        raise wrong(
            "no c_augment" if told is None else f"{told.dtype} of shape {list(told.shape)}",
            wanted=f"c_augment, float32 of shape {list(wanted)}",
            mend="return what was done, one row per sample",
        )
    changed = (found.x != samples(world).x).flatten(1).any(1)
    silent = changed & (told == 0).all(1)
    if bool(silent.any()):
        raise wrong(
            f"{int(silent.sum())} changed samples whose c_augment is zero",
            wanted="numbers that tell what was done",
            mend="derive c_augment from the same draws as the change",
        )


@law("leaves-everything-alone", world=worlds, seed=seeds())
def leaves_everything_alone(subject: Subject, world: World, seed: int) -> None:
    """It edits neither samples nor labels, and draws from no global generator."""
    part, given = made(subject, world), samples(world)
    inputs = {name: t for name, t in given._asdict().items() if t is not None}
    with leaves("augmenting samples", inputs=inputs):
        found = part.augment(given, draws(seed, COUNT, total=COUNT))
    before = samples(world).x
    found.x.add_(1.0)
    same_bits(given.x, before, what="samples after their copies were edited", mend="return copies")
