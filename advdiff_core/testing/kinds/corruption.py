"""Laws of corruptions."""

from __future__ import annotations

import math

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.dataset import Corruption
from advdiff_core.testing.bench import World, batch_of, seeds
from advdiff_core.testing.compare import finite, same_bits
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject

__all__ = ["LAWS"]

LAWS = Laws("corruption")
law = LAWS.law

#: The worlds of the laws have as many samples.
COUNT = 64
which = st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=6)


def made(subject: Subject, world: World) -> Corruption:
    """The corruption, built once per world."""
    found: Corruption = subject.memo(
        ("corruption", world.name), lambda: rig(subject).build(subject, world)
    )
    return found


def _keys(subject: Subject) -> set[str]:
    return {one.name for one in attrs.fields(type(subject.settings))}


def samples(world: World, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Clean samples [B, ...] at indices [B]: the same sample at the same index."""
    x = batch_of(world, 0, world.data.count).x
    return x[indices].clone(), torch.tensor(indices, dtype=torch.int64)


@law("pure-function-of-indices", world=worlds, indices=which, seed=seeds())
def pure_function_of_indices(subject: Subject, world: World, indices: list[int], seed: int) -> None:
    """The damage of a sample is the same in any order, batch and copy, whatever was read before."""
    damage = made(subject, world)
    x, at = samples(world, indices)
    first, hit = damage.corrupt(x, at), damage.affected(at)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        other = rig(subject).build(subject, world)
        found = {
            "again": damage.corrupt(x, at),
            "in reverse": damage.corrupt(x.flip(0), at.flip(0)).flip(0),
            "by another copy": other.corrupt(x, at),
            "one by one": torch.cat(
                [damage.corrupt(x[n : n + 1], at[n : n + 1]) for n in range(len(at))]
            ),
        }
    for name, again in found.items():
        same_bits(
            again,
            first,
            what=f"samples damaged {name}",
            mend="draw from a generator keyed by seed and index",
        )
    same_bits(
        other.affected(at.flip(0)).flip(0),
        hit,
        what="`affected` in another order",
        mend="depend on seed and index alone",
    )


@law("damages-what-it-says", world=worlds, indices=which)
def damages_what_it_says(subject: Subject, world: World, indices: list[int]) -> None:
    """Samples that are not `affected` come out bit for bit; shape and type stay; no NaN."""
    damage = made(subject, world)
    x, at = samples(world, indices)
    found, hit = damage.corrupt(x, at), damage.affected(at)
    if hit.dtype != torch.bool or tuple(hit.shape) != (len(indices),):
        raise wrong(
            f"`affected` in {hit.dtype}, shape {list(hit.shape)}",
            wanted=f"bool [{len(indices)}]",
            mend="return one truth value per sample",
        )
    if found.shape != x.shape or found.dtype != x.dtype:
        raise wrong(
            f"{found.dtype} of shape {list(found.shape)}",
            wanted=f"{x.dtype} of shape {list(x.shape)}",
            mend="return damaged copies of the samples",
        )
    finite(found, what="damaged samples", mend="bound the damage")
    same_bits(
        found[~hit],
        x[~hit],
        what="samples that are not affected",
        mend="touch affected samples only",
    )


@law("damages-a-fraction", world=worlds, fraction=st.sampled_from((0.5, 0.0, 1.0, 0.25)))
def damages_a_fraction(subject: Subject, world: World, fraction: float) -> None:
    """If it has a key `fraction`, that share of all samples is affected, and changed."""
    if "fraction" not in _keys(subject):
        message = "it has no key `fraction`"
        raise NotApplicable(message)
    other = subject.variant({"fraction": fraction})
    damage: Corruption = rig(other).build(other, world)
    x, at = samples(world, list(range(COUNT)))
    share = float(damage.affected(at).double().mean())
    slack = 4 * math.sqrt(fraction * (1 - fraction) / COUNT) + 1 / COUNT
    if abs(share - fraction) > slack:
        raise wrong(
            f"a share of {shown(share)} of {COUNT} samples affected",
            wanted=f"fraction = {fraction}",
            mend="choose samples from all of info.count, not from the batch",
        )
    hit = damage.affected(at)
    changed = (damage.corrupt(x, at) != x).flatten(1).any(1)
    strong = not any(getattr(other.settings, n, 1) == 0 for n in ("std", "amount", "strength"))
    if strong and bool((hit & ~changed).any()):
        raise wrong(
            f"{int((hit & ~changed).sum())} affected samples that are not changed",
            wanted="damage wherever `affected` says so",
            mend="let corrupt and affected agree",
        )


@law("obeys-its-seed", world=worlds, seed=st.integers(1, 99))
def obeys_its_seed(subject: Subject, world: World, seed: int) -> None:
    """If it has a key `seed`, another seed does other damage."""
    if "seed" not in _keys(subject):
        message = "it has no key `seed`"
        raise NotApplicable(message)
    wide = {"fraction": 0.5} if "fraction" in _keys(subject) else {}
    first, other = (subject.variant({"seed": n, **wide}) for n in (0, seed))
    x, at = samples(world, list(range(COUNT)))
    a, b = (rig(one).build(one, world).corrupt(x, at) for one in (first, other))
    if torch.equal(a, b):
        raise wrong(
            f"the same damage with seed = 0 and seed = {seed}",
            wanted="other damage",
            mend="put the seed into the key of every generator",
        )


@law("leaves-everything-alone", world=worlds, indices=which)
def leaves_everything_alone(subject: Subject, world: World, indices: list[int]) -> None:
    """It edits neither samples nor indices, and draws from no global generator."""
    damage = made(subject, world)
    x, at = samples(world, indices)
    with leaves("damaging samples", inputs={"x": x, "indices": at}):
        found = damage.corrupt(x, at)
    before = x.clone()
    found.add_(1.0)
    same_bits(
        x, before, what="samples after their damaged copies were edited", mend="return copies"
    )
