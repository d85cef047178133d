"""Quality of samples against Gaussian noise that is injected into the path of sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple

from attrs import frozen
from torch import Tensor

from advdiff_core import (
    Build,
    Denoise,
    Evaluation,
    Fault,
    ImageDraws,
    Metric,
    NoiseSchedule,
    RecipeError,
    Sampler,
    Spec,
)
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.interfaces.moved_path import MovedPath, Mover
from advdiff_core.interfaces.quality import judged, quality_of, sampler_of
from advdiff_core.settings import setting, settings

__all__ = ["DisturbedSampler", "NoiseRobustness"]


class _Point(NamedTuple):
    """A point of a curve.

    Attributes:
        curve: Name of the curve: "every" step, or "at<share>" for a single one.
        place: Share of the path at whose step noise is injected; None for every step.
        level: Standard deviation of the noise over sigma(t).
    """

    curve: str
    place: float | None
    level: float


class NoiseRobustness(Metric):
    """Another metric of samples whose path was disturbed by noise: the curve over its strength.

    Before a step is made, `x_t` becomes `x_t + level sigma(t) xi`: at every step
    (`noise_<number>_every_<level>`), or at one alone, a share `places` of the path from its start
    (`noise_<number>_at<place>_<level>`); `noise_<number>_plain` without noise, bit for bit the
    samples of the sampler itself. xi belongs to the seed and the step: the same at every level, for
    every model. Which way is better is the metric's. `noise-robustness-<metric>.csv` and `.png`
    hold the curves. Whether models that were trained against a mismatch of x_t bear it better is
    the question; the experiment, its levels and places are ours.
    """

    source: ClassVar[str] = "ours, for arXiv 2502.17099"

    @settings
    class Settings:
        """Keys of `use = "noise-robustness"`."""

        metric: Spec = setting(kind="metric", help="what judges the samples")
        numbers: tuple[str, ...] = setting((), help="numbers of it that are kept; empty: the first")
        levels: tuple[float, ...] = setting(
            (0.05, 0.1, 0.2, 0.4), gt=0, help="standard deviations of the noise", unit="sigma(t)"
        )
        every: bool = setting(default=True, help="a curve of noise before every step")
        places: tuple[float, ...] = setting(
            (), ge=0, lt=1, help="shares of the path: a curve of noise before the step there alone"
        )
        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        steps: int = setting(0, ge=0, help="steps of the sampler; 0: as it is set", unit="steps")
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")

        def __attrs_post_init__(self) -> None:
            """Refuse a metric without curves, and points that come twice.

            Raises:
                ValueError: If there are no points, or one twice.
            """
            if not self.levels or len(set(self.levels)) < len(self.levels):
                message = f"levels: found {list(self.levels)}, wanted one or more, each once"
                raise ValueError(message)
            if not self.every and not self.places:
                message = "places: found none, and every = false, wanted a curve"
                raise ValueError(message)
            if len(set(self.places)) < len(self.places):
                message = f"places: found {list(self.places)}, wanted each once"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        if build.schedule is None:
            message = "noise in units of sigma(t) needs a noise schedule, the recipe has none"
            raise RecipeError([Fault(code="R10", key=f"{build.path}.use", message=message)])
        self.schedule: NoiseSchedule = build.schedule
        self.quality = quality_of(build, settings.metric)

    def protocol(self) -> Mapping[str, object]:
        """The other metric's protocol, noise, sampler."""
        made = self.settings
        return {
            "metric": {"use": made.metric.use, **self.quality.protocol()},
            "noise": "Gaussian, before steps, keyed by seed and step",
            "levels": list(made.levels), "unit": "sigma(t)",
            "every step": made.every, "single steps at": list(made.places),
            "sampler of the curves": made.sampler.use if made.sampler else "the run's",
            "steps": made.steps or "of the sampler",
            "samples of each": made.num or "all seeds",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The other metric's numbers by name and point."""
        plain = self._judged(evaluation, None)
        numbers = {f"noise_{name}_plain": value for name, value in plain.items()}
        lines: dict[str, list[tuple[float, float]]] = {}
        for point in self._points():
            for name, value in self._judged(evaluation, point).items():
                numbers[f"noise_{name}_{point.curve}_{point.level:g}"] = value
                line = lines.setdefault(f"{name}, {point.curve}", [(0.0, plain[name])])
                line.append((point.level, value))
        use = self.settings.metric.use
        path = evaluation.folder / f"noise-robustness-{slug(use)}"
        write_curves(path, "noise / sigma(t)", lines, title=f"{use} with noise in x_t")
        return numbers

    def _points(self) -> Iterator[_Point]:
        made = self.settings
        for level in made.levels if made.every else ():
            yield _Point("every", None, level)
        for place in made.places:
            for level in made.levels:
                yield _Point(f"at{place:g}", place, level)

    def _judged(self, evaluation: Evaluation, point: _Point | None) -> dict[str, float]:
        made = self.settings
        sampler = sampler_of(self.build, evaluation, made.sampler, made.steps)
        name = "plain"
        if point is not None:
            sampler = DisturbedSampler(
                sampler, self.schedule, self.build, level=point.level, place=point.place
            )
            name = f"{point.curve}-{point.level:g}"
        found = evaluation.generate(sampler, num=made.num)
        folder = f"noise-robustness-{slug(made.metric.use)}/{name}"
        told = evaluation.with_samples(found.x0, folder)
        return judged(self.quality, told, made.numbers, self.build.path)


class DisturbedSampler(MovedPath):
    """A sampler whose state is moved by Gaussian noise before chosen steps.

    With `level = 0` its samples are those of the sampler itself, bit for bit.

    Args:
        sampler: The sampler.
        schedule: Gives sigma(t).
        build: What the metric was told.
        level: Standard deviation of the noise over sigma(t).
        place: Share of the path at whose step the noise comes; None for every step.
    """

    def __init__(
        self,
        sampler: Sampler,
        schedule: NoiseSchedule,
        build: Build,
        *,
        level: float,
        place: float | None = None,
    ) -> None:
        super().__init__(None, build, sampler)
        self.schedule, self.level, self.place = schedule, level, place

    def mover(self, denoise: Denoise, draws: ImageDraws, times: Tensor) -> Mover | None:
        """The noise on a path of `times` [n + 1]; none of level 0."""
        del denoise
        if self.level == 0:
            return None
        sigmas = self.schedule.sigma(times[:-1].double().cpu())
        chosen = self._chosen(len(sigmas))
        return _Noise(draws, {i: self.level * float(sigmas[i]) for i in chosen})

    def _chosen(self, count: int) -> range:
        """Indices of the disturbed steps of `count`."""
        if self.place is None:
            return range(count)
        # A share such as 0.29 of 100 steps is the 29th in floating point, too.
        index = math.floor(self.place * count + 1e-9)
        return range(index, index + 1)


@frozen(eq=False)
class _Noise:
    """Noise before steps: its standard deviation by the index of the step."""

    draws: ImageDraws
    stds: Mapping[int, float]
    calls: int = 0

    def moved(self, index: int, x: Tensor) -> Tensor:
        """The state [B, ...] before step `index`."""
        if index not in self.stds:
            return x
        xi = self.draws.child("disturbed", index).normal(tuple(x.shape)).to(x)
        return x + self.stds[index] * xi
