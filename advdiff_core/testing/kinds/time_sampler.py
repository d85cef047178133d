"""Laws of laws of training times."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.time_sampler import Times, TimeSampler
from advdiff_core.testing.bench import seeds
from advdiff_core.testing.compare import finite, same_bits
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import LENGTH, TIMES
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject, worlds_or_skip

__all__ = ["LAWS"]

LAWS = Laws("time_sampler")
law = LAWS.law

COUNT = 16
progress = st.integers(0, LENGTH - 1)


def made(subject: Subject) -> TimeSampler:
    """The law, built anew: it may learn."""
    world = worlds_or_skip(TIMES.fit(subject)[0])[0]
    found: TimeSampler = TIMES.build(subject, world)
    return found


def uniform(seed: int, size: int = COUNT) -> Tensor:
    """Uniform numbers [size], float64, one in each stratum."""
    spread = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (torch.arange(size, dtype=torch.float64) + spread) / size


def taught(subject: Subject, seed: int) -> TimeSampler:
    """The law after it has seen a few batches of losses."""
    times = made(subject)
    for turn in range(12):
        t = times.draw(uniform(seed + turn), 0).t
        times.observe(t, t.float() + 0.1 * uniform(seed + turn).float())
    return times


@law("times-in-range", seed=seeds(), nimg=progress)
def times_in_range(subject: Subject, seed: int, nimg: int) -> None:
    """One time per number, inside the schedule's range; weights are positive and finite."""
    times = taught(subject, seed)
    found = times.draw(uniform(seed), nimg)
    if tuple(found.t.shape) != (COUNT,):
        raise wrong(
            f"times of shape {list(found.t.shape)} for {COUNT} numbers",
            wanted=f"[{COUNT}]",
            mend="draw one time for each number",
        )
    finite(found.t, what="times", mend="keep them in [t_min, t_max]")
    schedule = times.build.schedule
    assert schedule is not None
    low, high = float(found.t.min()), float(found.t.max())
    slack = 1e-9 * schedule.t_max
    if low < schedule.t_min - slack or high > schedule.t_max + slack:
        raise wrong(
            f"times from {shown(low)} to {shown(high)}",
            wanted=f"inside [{schedule.t_min}, {schedule.t_max}]",
            mend="clamp to the schedule's training times",
        )
    _positive(found)


def _positive(found: Times) -> None:
    if found.weight is None:
        return
    finite(found.weight, what="importance weights", mend="never draw what has no probability")
    if tuple(found.weight.shape) != (COUNT,) or float(found.weight.min()) <= 0:
        raise wrong(
            f"importance weights {list(found.weight.shape)}, the least "
            f"{shown(float(found.weight.min()))}",
            wanted=f"[{COUNT}], above 0",
            mend="weigh by the wanted density over the one drawn from",
        )


@law("follows-its-numbers", seed=seeds(), nimg=progress)
def follows_its_numbers(subject: Subject, seed: int, nimg: int) -> None:
    """The same numbers give the same times, whatever the global generator and the calls before."""
    times = taught(subject, seed)
    first = times.draw(uniform(seed), nimg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        u = uniform(seed)
        with leaves("drawing times", inputs={"u": u}):
            again = times.draw(u, nimg)
    same_bits(again.t, first.t, what="times drawn again", mend="map `u`, and draw no numbers")
    if first.weight is not None and again.weight is not None:
        same_bits(again.weight, first.weight, what="weights drawn again", mend="map `u` alone")


@law("each-number-on-its-own", seed=seeds(), nimg=progress)
def each_number_on_its_own(subject: Subject, seed: int, nimg: int) -> None:
    """A micro-batch gets the times that its rows have in the whole batch."""
    times, u = taught(subject, seed), uniform(seed)
    whole = times.draw(u, nimg)
    part = times.draw(u[3:9], nimg)
    same_bits(
        part.t, whole.t[3:9], what="times of a part", mend="map each number by itself: a quantile"
    )
    if whole.weight is not None and part.weight is not None:
        same_bits(
            part.weight, whole.weight[3:9], what="weights of a part",
            mend="weigh by probabilities, not by what else is in the batch",
        )  # fmt: skip


@law("state-is-all", seed=seeds())
def state_is_all(subject: Subject, seed: int) -> None:
    """What it has learnt is in its buffers: another one with the same buffers draws the same."""
    times, other = taught(subject, seed), made(subject)
    other.load_state_dict(times.state_dict())
    for nimg in (0, LENGTH // 2, LENGTH - 1):
        same_bits(
            other.draw(uniform(seed), nimg).t,
            times.draw(uniform(seed), nimg).t,
            what="times of a law that was saved and loaded",
            mend="keep what is learnt in registered buffers",
        )


@law("survives-bad-losses", seed=seeds())
def survives_bad_losses(subject: Subject, seed: int) -> None:
    """Losses that are not finite do not make times or weights that are not."""
    times = taught(subject, seed)
    t = times.draw(uniform(seed), 0).t
    for value in (float("nan"), float("inf")):
        times.observe(t, torch.full((COUNT,), value))
    found = times.draw(uniform(seed + 1), 0)
    finite(found.t, what="times after a loss of NaN", mend="leave such losses out")
    if found.weight is not None:
        finite(found.weight, what="weights after a loss of NaN", mend="leave such losses out")


@law("levels-only-rise")
def levels_only_rise(subject: Subject) -> None:
    """A grid is refined, never made coarser, and has two levels at least."""
    times = made(subject)
    points = [round(share * (LENGTH - 1) / 20) for share in range(21)]
    found = [times.levels(nimg) for nimg in points]
    if all(count is None for count in found):
        message = "it refines no grid"
        raise NotApplicable(message)
    counts = [count or 0 for count in found]
    if min(counts) < 2 or counts != sorted(counts):
        raise wrong(
            f"levels {counts} over the run",
            wanted="at least 2, and never fewer than before",
            mend="let `levels` grow with nimg",
        )
