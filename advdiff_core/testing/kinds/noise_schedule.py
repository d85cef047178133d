"""Laws of noise schedules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.math import grids
from advdiff_core.testing.bench import plain_worlds, seeds
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import shown, wrong
from advdiff_core.testing.kinds.rigs import rig
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject, worlds_or_skip

__all__ = ["LAWS"]

LAWS = Laws("noise_schedule")
law = LAWS.law

DTYPES = (torch.float64, torch.float32)
shares = st.integers(0, 1000).map(lambda n: n / 1000)


def made(subject: Subject) -> NoiseSchedule:
    """The schedule, built once."""
    worlds_or_skip(rig(subject).fit(subject)[0])
    found: NoiseSchedule = subject.memo(
        "schedule", lambda: rig(subject).build(subject, plain_worlds()[0])
    )
    return found


def at(schedule: NoiseSchedule, share: float) -> Tensor:
    """A time [1], float64, that far through the range."""
    t = schedule.t_min + share * (schedule.t_max - schedule.t_min)
    return torch.tensor([min(t, schedule.t_max)], dtype=torch.float64)


@law("log-snr-falls", first=shares, second=shares)
def log_snr_falls(subject: Subject, first: float, second: float) -> None:
    """The signal-to-noise ratio falls strictly with time."""
    schedule = made(subject)
    early, late = at(schedule, min(first, second)), at(schedule, max(first, second))
    if float(late - early) <= 1e-9 * (schedule.t_max - schedule.t_min):
        return
    low, high = float(schedule.log_snr(late)), float(schedule.log_snr(early))
    if not low < high:
        raise wrong(
            f"log_snr {shown(high)} at t = {shown(float(early))} and {shown(low)} at "
            f"t = {shown(float(late))}",
            wanted="a log-SNR that falls strictly: noise grows with t",
            mend="let alpha fall and sigma grow with t, monotonically",
        )


@law("ends")
def ends(subject: Subject) -> None:
    """Signal and noise are positive and finite on the range; at `t_zero` there is no noise."""
    schedule = made(subject)
    if not schedule.t_zero < schedule.t_min < schedule.t_max:
        raise wrong(
            f"t_zero, t_min, t_max = {schedule.t_zero}, {schedule.t_min}, {schedule.t_max}",
            wanted="t_zero < t_min < t_max",
            mend="t_min is the smallest time a network sees, t_zero the noiseless end below it",
        )
    zero = torch.tensor([schedule.t_zero], dtype=torch.float64)
    alpha, sigma = float(schedule.alpha(zero)), float(schedule.sigma(zero))
    if (alpha, sigma) != (1.0, 0.0):
        raise wrong(
            f"alpha = {alpha!r} and sigma = {sigma!r} at t_zero = {schedule.t_zero}",
            wanted="exactly 1 and 0",
            mend="samplers end there: return the limits exactly, or set t_zero",
        )
    edges = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    for name, values in (("alpha", schedule.alpha(edges)), ("sigma", schedule.sigma(edges))):
        finite(values, what=f"{name} at t_min and t_max", mend="keep the range where it is finite")
        if bool((values <= 0).any()):
            raise wrong(
                f"{name} = {values.tolist()} at t_min and t_max",
                wanted="positive scales wherever networks are trained",
                mend="move t_min or t_max inwards",
            )


@law("time-of-log-snr", share=shares)
def time_of_log_snr(subject: Subject, share: float) -> None:
    """From time to log-SNR and back is the identity; ratios beyond the range give its ends."""
    schedule = made(subject)
    t = at(schedule, share)
    back = schedule.time_of_log_snr(schedule.log_snr(t))
    ratio, again = schedule.log_snr(t), schedule.log_snr(back)
    if abs(float(ratio - again)) > 1e-6 * (1 + abs(float(ratio))):
        raise wrong(
            f"t = {shown(float(t))} comes back as {shown(float(back))}",
            wanted="the same time",
            mend="make time_of_log_snr the inverse of log_snr, clamped to [t_min, t_max]",
        )
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    beyond = schedule.log_snr(ends) + torch.tensor([5.0, -5.0], dtype=torch.float64)
    same_values(
        schedule.time_of_log_snr(beyond),
        ends,
        what="times of log-SNRs beyond the range",
        rtol=1e-6,
        mend="clamp time_of_log_snr to [t_min, t_max]",
    )


@law("log-snr-is-its-formula", share=shares)
def log_snr_is_its_formula(subject: Subject, share: float) -> None:
    """`log_snr` is `log(alpha^2 / sigma^2)`."""
    schedule = made(subject)
    t = at(schedule, share)
    wanted = 2 * (schedule.alpha(t).log() - schedule.sigma(t).log())
    same_values(
        schedule.log_snr(t),
        wanted,
        what=f"log_snr at t = {shown(float(t))}",
        rtol=1e-6,
        mend="use the natural logarithm of the ratio of variances",
    )


@law("variance-as-declared", share=shares)
def variance_as_declared(subject: Subject, share: float) -> None:
    """`variance_preserving` says whether `alpha^2 + sigma^2 = 1` at every time."""
    schedule = made(subject)
    if schedule.variance_preserving:
        t = at(schedule, share)
        total = float(schedule.alpha(t).square() + schedule.sigma(t).square())
        if abs(total - 1) > 1e-9:
            raise wrong(
                f"alpha^2 + sigma^2 = {total:.12g} at t = {shown(float(t))}",
                wanted="1, as variance_preserving = True says",
                mend="set variance_preserving = False, or mend the scales",
            )
        return
    times = torch.linspace(schedule.t_min, schedule.t_max, 33, dtype=torch.float64)
    totals = schedule.alpha(times).square() + schedule.sigma(times).square()
    if bool(((totals - 1).abs() < 1e-9).all()):
        raise wrong(
            "alpha^2 + sigma^2 = 1 at every time, and variance_preserving = False",
            wanted="variance_preserving = True",
            mend="set it: input scaling depends on it",
        )


@law("keeps-type-and-shape", seed=seeds(), dtype=st.sampled_from(DTYPES))
def keeps_type_and_shape(subject: Subject, seed: int, dtype: torch.dtype) -> None:
    """Scales have the dtype and shape of the times, and are made without editing them."""
    schedule = made(subject)
    u = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = (schedule.t_min + u * (schedule.t_max - schedule.t_min)).to(dtype)
    for name, function in _functions(schedule).items():
        for shape in ((6,), (2, 3), ()):
            times = t[0] if shape == () else t.reshape(shape)
            with leaves(name, inputs={"t": times}):
                found = function(times)
            if found.dtype != dtype or found.shape != times.shape:
                raise wrong(
                    f"{name} in {found.dtype}, shape {list(found.shape)}, for times in {dtype}, "
                    f"shape {list(times.shape)}",
                    wanted="the dtype and shape of t",
                    mend="compute with t itself, or cast and reshape the result",
                )
            if shape == (6,):
                same_values(
                    found, function(times.double()).to(dtype), what=f"{name} in {dtype}",
                    rtol=2e-3, atol=1e-6, mend="compute in float64 where digits cancel",
                )  # fmt: skip


def _functions(schedule: NoiseSchedule) -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        "alpha": schedule.alpha, "sigma": schedule.sigma, "log_snr": schedule.log_snr,
        "c_noise": schedule.c_noise,
    }  # fmt: skip


@law("each-time-on-its-own", seed=seeds())
def each_time_on_its_own(subject: Subject, seed: int) -> None:
    """The scales at one time do not depend on the other times of the batch."""
    schedule = made(subject)
    u = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    t = schedule.t_min + u * (schedule.t_max - schedule.t_min)
    for name, function in _functions(schedule).items():
        alone = torch.cat([function(one.reshape(1)) for one in t])
        same_values(
            function(t), alone, what=f"{name} in a batch against alone", rtol=1e-12, atol=1e-12,
            mend="never normalise over the batch",
        )  # fmt: skip


@law("quantile-is-uniform", share=shares)
def quantile_is_uniform(subject: Subject, share: float) -> None:
    """Uniform numbers become uniform training times, on a discrete schedule its own times."""
    schedule = made(subject)
    u = torch.tensor([min(share, 1 - 1e-9)], dtype=torch.float64)
    t = schedule.quantile(u)
    span = schedule.t_max - schedule.t_min
    steps = schedule.num_steps
    wanted = schedule.t_min + float(u) * span
    if steps is not None:
        index = min(int(float(u) * steps), steps - 1)
        wanted = schedule.t_min + span * index / max(steps - 1, 1)
    if abs(float(t) - wanted) > 1e-6 * span:
        raise wrong(
            f"quantile({shown(float(u))}) = {shown(float(t))}",
            wanted=f"{shown(wanted)}: uniform over the training times, ends included",
            mend="leave quantile to the base class, or mend the index by one",
        )
    same_bits(
        schedule.snap(t),
        t,
        what="snap of a training time",
        mend="snap must leave training times alone",
    )


@law("snap", share=shares)
def snap(subject: Subject, share: float) -> None:
    """`snap` gives the nearest of `num_steps` evenly spaced times, inside the range."""
    schedule = made(subject)
    t = at(schedule, share)
    found = schedule.snap(t)
    if not schedule.t_min <= float(found) <= schedule.t_max:
        raise wrong(
            f"snap({float(t)!r}) = {float(found)!r}", wanted="a time in range", mend="clamp it"
        )
    same_bits(schedule.snap(found), found, what="snap of a snapped time", mend="make it idempotent")
    steps = schedule.num_steps
    unit = (schedule.t_max - schedule.t_min) / max(steps - 1, 1) if steps else 0.0
    if abs(float(found - t)) > unit / 2 * (1 + 1e-6) + 1e-12:
        raise wrong(
            f"snap({shown(float(t))}) = {shown(float(found))}",
            wanted=f"the nearest training time, at most {shown(unit / 2)} away",
            mend="num_steps times, the first t_min and the last t_max, evenly spaced",
        )


@law("grids-fall", count=st.integers(1, 40), kind=st.sampled_from(grids.LAWS))
def grids_fall(subject: Subject, count: int, kind: str) -> None:
    """Sampling grids of every law fall strictly from `t_max` to `t_zero`."""
    schedule = made(subject)
    grid = grids.sampling_times(schedule, count, law=kind)
    if not bool((grid.diff() < 0).all()):
        raise wrong(
            f"a {kind} grid of {count} steps that does not fall",
            wanted="strictly decreasing times",
            mend="mend log_snr and time_of_log_snr, which the grid is made of",
        )
    if float(grid[0]) != schedule.t_max or float(grid[-1]) != schedule.t_zero:
        raise wrong(
            f"a {kind} grid from {float(grid[0])!r} to {float(grid[-1])!r}",
            wanted=f"{schedule.t_max!r} to {schedule.t_zero!r}",
            mend="mend t_max, t_zero and snap",
        )


@law("noise-input-in-range", share=shares)
def noise_input_in_range(subject: Subject, share: float) -> None:
    """`c_noise` is finite and inside `c_noise_range`, which is not empty."""
    schedule = made(subject)
    low, high = schedule.c_noise_range()
    found = float(schedule.c_noise(at(schedule, share)))
    slack = 1e-9 * (1 + abs(low) + abs(high))
    if not (low < high and low - slack <= found <= high + slack):
        raise wrong(
            f"c_noise = {shown(found)} at share {share} of the range",
            wanted=f"a number in c_noise_range = [{shown(low)}, {shown(high)}]",
            mend="make c_noise monotone, or override c_noise_range",
        )
