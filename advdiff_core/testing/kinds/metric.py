"""Laws of metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from advdiff_core.draws import permutation
from advdiff_core.testing.bench import World, batch_of, seeds
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject

__all__ = ["LAWS"]

LAWS = Laws("metric")
law = LAWS.law

#: Samples per set: more than the numbers in a point, few enough for a second.
COUNT = 24


def numbers(subject: Subject, world: World, samples: Tensor, data: Tensor) -> Mapping[str, float]:
    """What it computes for samples [N, ...] and data [M, ...]."""
    made = rig(subject)
    metric = subject.memo(("metric", world.name), lambda: made.build(subject, world))
    evaluation = made.evaluation(subject, world, samples, data, subject.folder)  # type: ignore[attr-defined]
    found: Mapping[str, float] = metric.compute(evaluation)
    return found


def sets(world: World, seed: int) -> tuple[Tensor, Tensor]:
    """Samples and data, [N, ...] each."""
    return batch_of(world, seed, COUNT).x, batch_of(world, seed + 1000, COUNT).x


@law("finite-numbers", world=worlds, seed=seeds())
def finite_numbers(subject: Subject, world: World, seed: int) -> None:
    """It computes one or more named, finite Python numbers, of the same names each time."""
    found = numbers(subject, world, *sets(world, seed))
    if not found:
        raise wrong("no numbers", wanted="numbers by name", mend="return {name: float(value)}")
    for name, value in found.items():
        if (
            not isinstance(name, str)
            or not isinstance(value, int | float)
            or isinstance(value, bool)
        ):
            raise wrong(
                f"{name!r} = {value!r}", wanted="a Python number by name", mend="write float(value)"
            )
        if not math.isfinite(value):
            raise wrong(
                f"{name} = {value}", wanted="a finite number", mend="guard logarithms and divisions"
            )
    again = numbers(subject, world, *sets(world, seed + 1))
    if set(again) != set(found):
        raise wrong(
            f"the names {sorted(again)} after {sorted(found)}",
            wanted="the same names each time",
            mend="always report every number",
        )


@law("protocol-says-something", world=worlds)
def protocol_says_something(subject: Subject, world: World) -> None:
    """The protocol is a non-empty JSON object that does not change."""
    metric = rig(subject).build(subject, world)
    protocol = metric.protocol()
    if not protocol:
        raise wrong(
            "an empty protocol",
            wanted="what the number depends on",
            mend="name features, counts, resize rule and seeds",
        )
    try:
        text = json.dumps(dict(protocol), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise wrong(
            f"a protocol that JSON cannot hold: {error}",
            wanted="numbers, texts, lists, tables",
            mend="convert paths and tensors",
        ) from None
    if text != json.dumps(dict(metric.protocol()), sort_keys=True):
        raise wrong(
            "a protocol that changes",
            wanted="the same each time",
            mend="leave times and counters out",
        )


@law("order-does-not-matter", world=worlds, seed=seeds())
def order_does_not_matter(subject: Subject, world: World, seed: int) -> None:
    """Samples and data in another order give the same numbers."""
    samples, data = sets(world, seed)
    wanted = numbers(subject, world, samples, data)
    shuffled = [x[permutation(COUNT, seed, n)] for n, x in enumerate((samples, data))]
    for which, found in {
        "samples": numbers(subject, world, shuffled[0], data),
        "data": numbers(subject, world, samples, shuffled[1]),
    }.items():
        for name, value in wanted.items():
            if not math.isclose(found[name], value, rel_tol=1e-4, abs_tol=1e-6):
                raise wrong(
                    f"{name} = {shown(value)}, {shown(found[name])} with {which} in another order",
                    wanted="the same number",
                    mend="a metric is of sets: no pairs by position, no batches that matter",
                )


@law("repeats-itself", world=worlds, seed=seeds())
def repeats_itself(subject: Subject, world: World, seed: int) -> None:
    """The same sets give the same numbers; nothing is edited, no global generator is drawn from."""
    samples, data = sets(world, seed)
    with leaves("computing", inputs={"samples": samples, "data": data}):
        first = numbers(subject, world, samples, data)
    numbers(subject, world, data, samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        again = numbers(subject, world, samples, data)
    if dict(first) != dict(again):
        name = next(n for n in first if first[n] != again[n])
        raise wrong(
            f"{name} = {shown(first[name])} and then {shown(again[name])}",
            wanted="the same number",
            mend="draw from a generator with a seed of the settings; keep nothing",
        )


@law("best-on-equal-sets", world=worlds, seed=seeds())
def best_on_equal_sets(subject: Subject, world: World, seed: int) -> None:
    """Where an example says what is best, samples equal to the data get it."""
    if not subject.example.best:
        message = "no example says what is best: Example(best={...})"
        raise NotApplicable(message)
    x, _ = sets(world, seed)
    found = numbers(subject, world, x, x)
    for name, best in subject.example.best.items():
        if name not in found or not math.isclose(found[name], best, rel_tol=1e-3, abs_tol=1e-4):
            raise wrong(
                f"{name} = {found.get(name)} for samples that are the data",
                wanted=best,
                mend="compare samples with the clean data, by the same rule on both",
            )


@law("symmetric-as-claimed", world=worlds, seed=seeds())
def symmetric_as_claimed(subject: Subject, world: World, seed: int) -> None:
    """Where an example says that a number is symmetric, samples and data may change places."""
    if not subject.example.symmetric:
        message = "no example says what is symmetric: Example(symmetric=(...,))"
        raise NotApplicable(message)
    samples, data = sets(world, seed)
    data = 2 * data + 0.5
    there, back = (numbers(subject, world, *pair) for pair in ((samples, data), (data, samples)))
    for name in subject.example.symmetric:
        if name not in there or not math.isclose(there[name], back[name], rel_tol=1e-4):
            raise wrong(
                f"{name} = {there.get(name)}, and {back.get(name)} with the sets exchanged",
                wanted="the same number, as Example(symmetric=...) says",
                mend="treat both sets alike, or do not claim it",
            )
