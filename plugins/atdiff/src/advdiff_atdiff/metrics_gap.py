"""The distribution gap: how far what a sampler feeds the network is from what training fed it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advdiff_atdiff.clouds import Cloud, directions_of, distance, quotient
from advdiff_core import (
    Build,
    Evaluation,
    Fault,
    Metric,
    Prediction,
    RecipeError,
    SampleDraws,
    Spec,
)
from advdiff_core.draws import content_ids
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.interfaces.quality import sampler_of
from advdiff_core.math.statistics import batches
from advdiff_core.settings import setting, settings

__all__ = ["DistributionGap", "Followed"]

#: Curves of the size of eps_hat.
SIZES = ("mean, sampling", "spread, sampling", "mean, training", "spread, training")


class Level(NamedTuple):
    """Scales that a network is told it works at.

    Attributes:
        t: Time of the sampler's grid.
        alpha: Signal scale.
        sigma: Noise scale.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def size(self) -> float:
        """`sqrt(alpha^2 + sigma^2)`: size of x_t for data of size 1, and 1 on vp schedules."""
        return (self.alpha**2 + self.sigma**2) ** 0.5


class _Met(NamedTuple):
    """What is met at one level in sampling, in training, and in training once more."""

    level: Level
    sampled: Cloud
    trained: Cloud
    control: Cloud

    @property
    def distances(self) -> tuple[float, float]:
        """Sliced distances of sampling and of the control to training, in the size of x_t."""
        size = self.level.size
        sides = self.sampled, self.control
        there, back = (distance(one, self.trained) / size for one in sides)
        return there, back

    @property
    def sizes(self) -> tuple[float, float, float, float]:
        """Mean and spread of the size of eps_hat in sampling, then in training."""
        sides = (self.sampled.sizes, self.trained.sizes)
        (a, b), (c, d) = ((float(x.mean()), float(x.std(correction=0))) for x in sides)
        return a, b, c, d


class DistributionGap(Metric):
    """Distance between the x_t that training feeds the network and those that sampling feeds it.

    The mismatch that distributionally robust training is meant to reduce (arXiv 2502.17099), at
    every time of the sampler's grid and at its end. Training: data as the model saw them, noised.

    - `gap_sliced`: sliced 2-Wasserstein distance over `sqrt(alpha^2 + sigma^2)`, mean over times;
      `gap_sliced_worst`: the largest; `gap_sliced_floor`: the mean that other data of training,
      noised anew, get for their finite number, below which a distance says nothing. Lower is
      better.
    - `gap_eps_norm`: root mean square of eps_hat in sampling over that in training, mean over
      times: what epsilon scaling divides by (Ning et al., 2024). `gap_eps_spread`: the same of its
      standard deviation over samples. 1 at best.
    - `gap_variance`: variance of x_t in sampling over that in training, mean over times; 1 at best.

    `distribution-gap.csv` and `.png` (`distribution-gap-<sampler>` for another one) hold the
    distances over t, `distribution-gap-eps` the sizes of eps_hat, and `distribution-gap-variance`
    the ratios. Which distances the paper measures is UNKNOWN; these are ours.
    """

    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2502.17099; measures of the gap: ours"

    @settings
    class Settings:
        """Keys of `use = "distribution-gap"`."""

        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        steps: int = setting(0, ge=0, help="steps of the sampler; 0: as it is set", unit="steps")
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")
        projections: int = setting(128, ge=1, le=1_000_000, help="random directions")
        seed: int = setting(0, ge=0, help="of the directions and of the noise on the data")
        batch: int = setting(256, ge=1, help="data per forward of the network", unit="samples")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        if build.schedule is None:
            message = "a gap along noise levels needs a noise schedule, the recipe has none"
            raise RecipeError([Fault(code="R10", key=f"{build.path}.use", message=message)])

    def protocol(self) -> Mapping[str, object]:
        """Distance, sides, sampler and counts."""
        made = self.settings
        return {
            "distance": "sliced 2-Wasserstein, exact in 1-D, over sqrt(alpha^2 + sigma^2)",
            "training": "data as seen, noised; as many as samples, or half of the data",
            "control": "other data, as many, with other noise",
            "path": made.sampler.use if made.sampler else "the run's sampler",
            "steps": made.steps or "of the sampler",
            "paths": made.num or "all seeds",
            "projections": made.projections, "seed": made.seed,
            "pooling": "mean over the times of the grid; eps without its last, where none is asked",
            "bias": "too large for few samples; compare equal counts only, and with the floor",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; see the class."""
        met = self._meetings(evaluation)
        times = [one.level.t for one in met]
        sampled, floor = zip(*(one.distances for one in met), strict=True)
        variance = [quotient(one.sampled.variance, one.trained.variance) for one in met]
        sizes = list(zip(*(one.sizes for one in met[:-1]), strict=True))
        self._write(evaluation, "", times, {"sampling": sampled, "training again": floor})
        self._write(evaluation, "-variance", times, {"sampling over training": variance})
        self._write(evaluation, "-eps", times[:-1], dict(zip(SIZES, sizes, strict=True)))
        return {
            "gap_sliced": fmean(sampled),
            "gap_sliced_worst": max(sampled),
            "gap_sliced_floor": fmean(floor),
            "gap_eps_norm": fmean(map(quotient, sizes[0], sizes[2])),
            "gap_eps_spread": fmean(map(quotient, sizes[1], sizes[3])),
            "gap_variance": fmean(variance),
        }

    def _meetings(self, evaluation: Evaluation) -> list[_Met]:
        """What is met at every time of the grid, from its start to its end."""
        made = self.settings
        sampler = sampler_of(self.build, evaluation, made.sampler, made.steps)
        directions = directions_of(made.projections, evaluation.data[0].numel(), made.seed)
        followed = Followed(sampler.grid(), directions)
        x0 = evaluation.generate(sampler, num=made.num, callback=followed).x0
        sampled = followed.finished(x0)
        levels = [level for level, _ in sampled]
        trained, control = (
            self._noised(evaluation, rows, levels, directions, side)
            for side, rows in self._sides(evaluation, len(x0)).items()
        )
        columns = (levels, [cloud for _, cloud in sampled], trained, control)
        return [_Met(*row) for row in zip(*columns, strict=True)]

    def _sides(self, evaluation: Evaluation, count: int) -> dict[str, Tensor]:
        """Indices into the data of both sides; which ones they are depends on their content."""
        names = evaluation.remember(
            "content of the data as seen", lambda: content_ids(evaluation.data)
        )
        order = torch.tensor(names).argsort(stable=True)
        size = min(count, len(order) // 2)
        if size < count:
            told = f"{size} data on either side for {count} samples: the data set has no more"
            evaluation.note(told)
        return {"trained": order[:size], "control": order[size : 2 * size]}

    def _noised(
        self,
        evaluation: Evaluation,
        rows: Tensor,
        levels: Sequence[Level],
        directions: Tensor,
        side: str,
    ) -> list[Cloud]:
        """Data noised to each level: its cloud, with predictions where `side` is "trained"."""
        clouds = [Cloud(directions) for _ in levels]
        for part in batches(rows, self.settings.batch):
            x0 = evaluation.data[part]
            key = (self.settings.seed, "distribution-gap", side)
            eps = SampleDraws(key, content_ids(x0)).normal(x0.shape)
            labels = None if evaluation.labels is None else evaluation.labels[part]
            for level, cloud in zip(levels, clouds, strict=True):
                x_t = level.alpha * x0 + level.sigma * eps
                asked = side == "trained" and level is not levels[-1]
                cloud.add(x_t, self._predicted(evaluation, x_t, level, labels) if asked else None)
        return clouds

    @torch.no_grad()
    def _predicted(
        self, evaluation: Evaluation, x_t: Tensor, level: Level, labels: Tensor | None
    ) -> Tensor:
        """What the network predicts in training at `x_t` [B, ...]."""
        x_t = x_t.to(evaluation.device)
        t = torch.full((len(x_t),), self._told(level), dtype=x_t.dtype, device=x_t.device)
        return evaluation.denoiser(None, labels)(x_t, t).eps

    def _told(self, level: Level) -> float:
        """Time that the network is told: that of the grid, but for churn and shifted times."""
        schedule = self.build.schedule
        assert schedule is not None, "checked when built"
        t = torch.tensor(level.t, dtype=torch.float64)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        if math.isclose(alpha * level.sigma, sigma * level.alpha, rel_tol=1e-4):
            return level.t
        log_snr = 2 * math.log(level.alpha / level.sigma)
        return float(schedule.time_of_log_snr(torch.tensor(log_snr, dtype=torch.float64)))

    def _write(
        self,
        evaluation: Evaluation,
        name: str,
        times: Sequence[float],
        lines: Mapping[str, Sequence[float]],
    ) -> None:
        """Curves over t."""
        spec = self.settings.sampler
        path = evaluation.folder / f"distribution-gap{name}{f'-{slug(spec.use)}' if spec else ''}"
        curves = {key: list(zip(times, line, strict=True)) for key, line in lines.items()}
        write_curves(path, "t", curves, title=f"distribution gap{name.replace('-', ': ')}")


class Followed:
    """A callback of samplers that keeps what the network was fed at each step, batch by batch.

    Args:
        grid: Times [n + 1] of the sampler.
        directions: Unit directions [P, D].
    """

    def __init__(self, grid: Tensor, directions: Tensor) -> None:
        self._times: list[float] = grid.double().tolist()
        self._directions = directions
        self._met: dict[int, tuple[Level, Cloud]] = {}

    def __call__(self, index: int, state: Tensor, prediction: Prediction) -> None:
        """See `StepCallback`; `state` [B, ...]."""
        del state
        assert prediction.alpha is not None, "samplers ask denoisers"
        assert prediction.sigma is not None
        if index not in self._met:
            alpha, sigma = (
                float(scale.flatten()[0]) for scale in (prediction.alpha, prediction.sigma)
            )
            level = Level(self._times[index], alpha, sigma)
            self._met[index] = level, Cloud(self._directions)
        self._met[index][1].add(prediction.x_t, prediction.eps)

    def finished(self, x0: Tensor) -> list[tuple[Level, Cloud]]:
        """Level and cloud of each step, and of the samples [N, ...] that it ended with."""
        last = Cloud(self._directions)
        last.add(x0)
        steps = [self._met[index] for index in sorted(self._met)]
        return [*steps, (Level(self._times[-1], 1.0, 0.0), last)]
