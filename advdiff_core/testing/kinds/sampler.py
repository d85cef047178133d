"""Laws of samplers, on denoisers whose answers are known."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.draws import SeedDraws
from advdiff_core.errors import AdvdiffError
from advdiff_core.interfaces.sampler import Sampler, all_steps
from advdiff_core.math import grids
from advdiff_core.testing import bench
from advdiff_core.testing.bench import World, numel, seeds, sizes
from advdiff_core.testing.compare import finite, same_bits, same_values
from advdiff_core.testing.findings import NotApplicable, shown, wrong
from advdiff_core.testing.kinds.rigs import rig, worlds
from advdiff_core.testing.known import MEAN, STD, Known, NotingDraws, spread, start
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject
from advdiff_core.types import Prediction, expand

__all__ = ["LAWS"]

LAWS = Laws("sampler")
law = LAWS.law

#: Numbers that a statistic is made of.
NUMBERS = 3000


def schedules(subject: Subject) -> SearchStrategy[str]:
    """Names of the schedules it accepts."""
    return st.sampled_from(subject.memo("schedules", lambda: _accepted(subject)))


def _accepted(subject: Subject) -> tuple[str, ...]:
    made = rig(subject)
    fitting = made.fit(subject)[0]
    if not fitting:
        message = "it does not build: see law 'builds'"
        raise NotApplicable(message)
    accepted = []
    for name in bench.SCHEDULES:
        try:
            sampler(subject, fitting[0], name)
        except AdvdiffError:
            continue
        accepted.append(name)
    return tuple(accepted)


def sampler(subject: Subject, world: World, schedule: str) -> Sampler:
    """The sampler, built once per world and schedule."""
    made = rig(subject)
    found: Sampler = subject.memo(
        ("sampler", world.name, schedule),
        lambda: made.sampler(subject, world, schedule),  # type: ignore[attr-defined]
    )
    return found


def run(made: Sampler, denoise: Known, numbers: list[int], world: World, grid: Tensor) -> Tensor:
    """Samples [B, ...] of the images with these seeds."""
    x = start(denoise.schedule, numbers, world.data.shape, float(grid[0]))
    return made.sample(denoise, x, SeedDraws(numbers), grid=grid).x0


def solving(subject: Subject, world: World, schedule: str) -> Sampler:
    """The sampler, if a known denoiser is something for it.

    Raises:
        NotApplicable: If it samples from models that are no denoisers of the data.
    """
    made = sampler(subject, world, schedule)
    if not made.of_denoiser:
        message = "its models are no denoisers of the data: of_denoiser is False"
        raise NotApplicable(message)
    return made


@law("grid-falls", world=worlds, schedule=schedules)
def grid_falls(subject: Subject, world: World, schedule: str) -> None:
    """Its grid falls strictly in float64 from `t_max` to `t_zero`, where nothing is noise."""
    known, grid = bench.schedule(schedule), sampler(subject, world, schedule).grid()
    if grid.dim() != 1 or grid.shape[0] < 2 or grid.dtype != torch.float64:
        raise wrong(
            f"a grid of shape {list(grid.shape)} in {grid.dtype}",
            wanted="times [n + 1], float64",
            mend="make it with advdiff_core.math.grids.sampling_times",
        )
    if not bool((grid.diff() < 0).all()):
        raise wrong(
            "a grid that does not fall",
            wanted="strictly decreasing times",
            mend="round times to training times only if there are enough of them",
        )
    ends = (float(grid[0]), float(grid[-1]))
    if ends[0] != known.t_max or ends[1] != known.t_zero:
        raise wrong(
            f"a grid from {ends[0]!r} to {ends[1]!r} on {schedule}",
            wanted=f"from t_max = {known.t_max!r} to t_zero = {known.t_zero!r}",
            mend="the last step must end without noise: append t_zero",
        )


@law("counts-evaluations", world=worlds, schedule=schedules, count=st.integers(1, 6))
def counts_evaluations(subject: Subject, world: World, schedule: str, count: int) -> None:
    """`nfe` is how often the denoiser was called, which is never at a time without noise."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    denoise, grid = Known(known), grids.sampling_times(known, count)
    x = start(known, [0, 1], world.data.shape, float(grid[0]))
    found = made.sample(denoise, x, SeedDraws([0, 1]), grid=grid)
    if found.nfe != denoise.calls:
        raise wrong(
            f"nfe = {found.nfe} after {denoise.calls} calls of the denoiser",
            wanted="their number",
            mend="count a call where it is made",
        )
    if denoise.calls < count:
        raise wrong(
            f"{denoise.calls} calls for a grid of {count} steps",
            wanted="one or more per step",
            mend="visit every pair of the grid it is given",
        )
    low, high = min(denoise.times), max(denoise.times)
    if low < known.t_min * (1 - 1e-6) or high > known.t_max * (1 + 1e-6):
        raise wrong(
            f"evaluations at times from {shown(low)} to {shown(high)}",
            wanted=f"[{shown(known.t_min)}, {shown(known.t_max)}], where networks are trained",
            mend="do not evaluate at t_zero, nor beyond t_max",
        )


@law(
    "reaches-a-known-point", world=worlds, schedule=schedules, count=st.integers(1, 8), seed=seeds()
)
def reaches_a_known_point(
    subject: Subject, world: World, schedule: str, count: int, seed: int
) -> None:
    """Where the data are a single point and the denoiser knows it, sampling ends there."""
    made, known = solving(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, count)
    found = run(made, Known(known, std=0.0), [seed, seed + 1], world, grid)
    wanted = torch.full_like(found, 0.25)
    same_values(
        found,
        wanted,
        what=f"samples after {count} steps on {schedule}",
        rtol=1e-3,
        atol=1e-4,
        mend="check the coefficients, the last step, and that pairs (t, t_next) are not off by one",
    )


def errors_after(  # noqa: PLR0913 - what a run of a sampler is made of.
    subject: Subject, world: World, schedule: str, seed: int, *, counts: tuple[int, ...], end: bool
) -> list[float]:
    """Errors against the exact solution for Gaussian data, by number of steps.

    Args:
        subject: The sampler.
        world: The data.
        schedule: Name of the schedule.
        seed: Seed of the first image.
        counts: Numbers of steps.
        end: Whether the grid ends without noise, or at the last training time.

    Raises:
        NotApplicable: If the sampler draws numbers, or samples from models that are no denoisers.
    """
    made, known = solving(subject, world, schedule), bench.schedule(schedule)
    found = []
    for count in counts:
        grid = grids.sampling_times(known, count, law="log-snr")[: None if end else -1]
        draws = NotingDraws()
        x = start(known, [seed, seed + 1], world.data.shape, float(grid[0]))
        made_x0 = made.sample(Known(known), x, draws, grid=grid).x0
        if draws.asked:
            message = "it draws numbers"
            raise NotApplicable(message)
        z = (x - known.alpha(grid[0]) * MEAN) / spread(known, grid[0])
        exact = known.alpha(grid[-1]) * MEAN + spread(known, grid[-1]) * z
        found.append(float((made_x0 - exact).abs().max()))
    return found


@law("converges", world=worlds, schedule=schedules, seed=seeds(), effort=0.3)
def converges(subject: Subject, world: World, schedule: str, seed: int) -> None:
    """On Gaussian data more steps come nearer to the exact solution, if it draws nothing."""
    errors = errors_after(subject, world, schedule, seed, counts=(12, 96), end=True)
    if not errors[1] <= 0.5 * errors[0] + 1e-6:
        raise wrong(
            f"errors of {shown(errors[0])} after 12 steps and {shown(errors[1])} after 96",
            wanted="an error that falls with the number of steps",
            mend="check the coefficients of the step against the probability-flow ODE",
        )


@law("converges-in-its-order", world=worlds, schedule=schedules, seed=seeds(), effort=0.3)
def converges_in_its_order(subject: Subject, world: World, schedule: str, seed: int) -> None:
    """Where an example claims an order p, four times the steps make the error 4^p times smaller."""
    order = subject.example.order
    if order is None:
        message = "no example claims an order of convergence: Example(order=...)"
        raise NotApplicable(message)
    errors = errors_after(subject, world, schedule, seed, counts=(24, 96), end=False)
    wanted = 4 ** (order - 0.4)
    if not errors[1] <= errors[0] / wanted + 1e-9:
        raise wrong(
            f"an error {shown(errors[0] / errors[1])} times smaller with four times the steps",
            wanted=f"at least {shown(wanted)} times: order {order} is claimed",
            mend="check the higher-order correction, its weight and its sign",
        )


@law("keeps-the-distribution", world=worlds, schedule=schedules, seed=seeds(), effort=0.3)
def keeps_the_distribution(subject: Subject, world: World, schedule: str, seed: int) -> None:
    """On Gaussian data samples have the mean and the spread of the data."""
    made, known = solving(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, 64, law="log-snr")
    count = max(2, NUMBERS // numel(world))
    x = run(made, Known(known), [seed + n for n in range(count)], world, grid)
    mean, std = float(x.mean()), float(x.std())
    if abs(mean - MEAN) > 0.1 * STD or abs(std - STD) > 0.15 * STD:
        raise wrong(
            f"samples of mean {shown(mean)} and deviation {shown(std)} on {schedule}",
            wanted=f"{MEAN} and {STD}, those of the data",
            mend="check how much noise a step removes and how much it adds",
        )


@law("images-are-independent", world=worlds, schedule=schedules, seed=seeds(), size=sizes(2, 4))
def images_are_independent(
    subject: Subject, world: World, schedule: str, seed: int, size: int
) -> None:
    """An image depends on its own seed alone: not on the batch, the order, or earlier runs."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    grid, numbers = grids.sampling_times(known, 4), [seed + n for n in range(size)]
    whole = run(made, Known(known), numbers, world, grid)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 17)
        for row, number in enumerate(numbers):
            same_values(
                run(made, Known(known), [number], world, grid)[0], whole[row],
                rtol=1e-9, atol=1e-12,
                what=f"the image of seed {number} alone against in a batch",
                mend="draw from `draws` alone, [B, ...] at a time; no statistics over the batch",
            )  # fmt: skip
    turned = run(made, Known(known), numbers[::-1], world, grid).flip(0)
    same_values(
        turned,
        whole,
        what="images in another order",
        rtol=1e-9,
        atol=1e-12,
        mend="treat the images of a batch alike",
    )


@law(
    "gradients-where-asked",
    world=worlds,
    schedule=schedules,
    seed=seeds(),
    checkpoint=st.booleans(),
)
def gradients_where_asked(
    subject: Subject, world: World, schedule: str, seed: int, checkpoint: bool
) -> None:
    """No step keeps a graph unless asked; `grad_steps` gives gradients and changes no number."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, 3)
    x = start(known, [seed], world.data.shape, float(grid[0]))
    mean = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    plain = made.sample(Known(known, mean=mean), x, SeedDraws([seed]), grid=grid).x0
    if plain.requires_grad:
        raise wrong(
            "a graph although no step was to keep one",
            wanted="sampling without gradients",
            mend="run steps that are not in grad_steps under torch.no_grad()",
        )
    found = made.sample(
        Known(known, mean=mean), x, SeedDraws([seed]), grid=grid, grad_steps=all_steps(3),
        checkpoint=checkpoint,
    ).x0  # fmt: skip
    same_bits(
        found.detach(),
        plain,
        what="samples with gradients against without",
        mend="the same numbers, with or without a graph",
    )
    if not found.requires_grad:
        raise wrong(
            "no graph with grad_steps = all",
            wanted="gradients through every step",
            mend="do not detach the state in steps that are in grad_steps",
        )
    (gradient,) = torch.autograd.grad(found.sum(), mean)
    finite(
        gradient,
        what="the gradient through all steps",
        mend="look for divisions by sigma at the end",
    )


@law("tells-every-step", world=worlds, schedule=schedules, count=st.integers(1, 5))
def tells_every_step(subject: Subject, world: World, schedule: str, count: int) -> None:
    """The callback sees each step once, in order, and the last state is the result."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, count)
    seen: list[tuple[int, Tensor]] = []
    x = start(known, [0], world.data.shape, float(grid[0]))
    found = made.sample(
        Known(known),
        x,
        SeedDraws([0]),
        grid=grid,
        callback=lambda i, state, _: seen.append((i, state)),
    )
    if [index for index, _ in seen] != list(range(count)):
        raise wrong(
            f"callbacks of the steps {[i for i, _ in seen]}",
            wanted=f"0 to {count - 1}, in order",
            mend="call it after each step with the step's index",
        )
    same_bits(
        seen[-1][1],
        found.x0,
        what="the last state told against the result",
        mend="call it after the state has moved",
    )


@law("takes-a-state-back", world=worlds, schedule=schedules, count=st.integers(1, 5))
def takes_a_state_back(subject: Subject, world: World, schedule: str, count: int) -> None:
    """A state that the callback returns takes the place of the sampler's own."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, count)
    x = start(known, [0], world.data.shape, float(grid[0]))
    wanted = torch.full_like(x, 0.125)

    def replaced(index: int, state: Tensor, prediction: Prediction) -> Tensor | None:
        del prediction
        return wanted.to(state) if index == count - 1 else None

    found = made.sample(Known(known), x, SeedDraws([0]), grid=grid, callback=replaced).x0
    same_bits(
        found,
        wanted.to(found),
        what="the samples where the last state was replaced",
        mend="go on with what the callback returns, unless that is None",
    )


@law("leaves-everything-alone", world=worlds, schedule=schedules, seed=seeds())
def leaves_everything_alone(subject: Subject, world: World, schedule: str, seed: int) -> None:
    """Sampling edits neither its start nor the grid, and draws from no global generator."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    grid = grids.sampling_times(known, 3)
    x = start(known, [seed], world.data.shape, float(grid[0]))
    with leaves("sampling", inputs={"x": x, "grid": grid}):
        made.sample(Known(known), x, SeedDraws([seed]), grid=grid)


@law("linear-as-it-says", world=worlds, schedule=schedules, seed=seeds())
def linear_as_it_says(subject: Subject, world: World, schedule: str, seed: int) -> None:
    """If `linear`, the middle of two starts and of two series of predictions ends in the middle."""
    made, known = sampler(subject, world, schedule), bench.schedule(schedule)
    if not made.linear:
        message = "it does not say that its steps are linear"
        raise NotApplicable(message)
    grid, shape = grids.sampling_times(known, 4), world.data.shape
    # Predictions far outside of any domain: a step that clips is seen.
    x, other, hat, far = (start(known, [seed + n], shape, float(grid[0])) for n in range(4))

    def end(x: Tensor, hat: Tensor) -> Tensor:
        def denoise(x_t: Tensor, t: Tensor) -> Prediction:
            alpha, sigma = (expand(scale(t), x_t) for scale in (known.alpha, known.sigma))
            found = 9 * hat * (1 + t.to(hat))
            return Prediction("x0", found, x_t, alpha, sigma, variance=torch.zeros_like(x_t))

        return made.sample(denoise, x, SeedDraws([seed]), grid=grid).x0

    same_values(
        end((x + other) / 2, (hat + far) / 2),
        (end(x, hat) + end(other, far)) / 2,
        what=f"samples of the middle against the middle of two samples on {schedule}",
        rtol=1e-6,
        atol=1e-6,
        mend="leave `linear` False, or neither clip, search nor look at the state's statistics",
    )
