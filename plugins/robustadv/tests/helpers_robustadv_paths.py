"""Denoisers with known answers, and evaluations around them, for the tests of metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from advdiff_core import Build, DataInfo, Denoise, Domain, Prediction, Sampler, Samples, SeedDraws
from advdiff_core.samplers import DDIM
from advdiff_core.schedules import VPLinear
from advdiff_core.settings import Spec
from advdiff_core.types import expand

T = TypeVar("T")

SCHEDULE = VPLinear(VPLinear.Settings(), Build(path="schedule"))
POINTS = DataInfo(shape=(3,), count=40)
IMAGES = DataInfo(shape=(1, 4, 4), count=40, domain=Domain(-1.0, 1.0))


def build(data: DataInfo = POINTS, make: Callable[[Spec], Any] | None = None, **keys: Any) -> Build:
    """What a metric or sampler is told."""
    return Build(path="evaluate.metrics[0]", data=data, schedule=SCHEDULE, make=make, **keys)


def spec_of(kind: str, component: Any, use: str = "inner", **keys: Any) -> Spec:
    """A nested component."""
    return Spec(kind=kind, use=use, settings=component.Settings(**keys), component=component)


class Linear:
    """`eps_hat = gain(t) (x_t - alpha centre)`, with the gain of Gaussian data of deviation `std`.

    `std = 0` is a single point, whose denoiser is exactly equivariant. Calls are counted.
    """

    def __init__(self, std: float | Tensor = 0.0, centre: float = 0.3, slope: float = 1.0) -> None:
        self.std, self.centre, self.slope, self.calls = torch.as_tensor(std), centre, slope, 0

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction at `x_t` [B, ...]."""
        self.calls += 1
        alpha = expand(SCHEDULE.alpha(t.double()), x_t).to(x_t)
        sigma = expand(SCHEDULE.sigma(t.double()), x_t).to(x_t)
        gain = sigma / (alpha.square() * self.std.to(x_t).square() + sigma.square())
        eps = self.slope * gain * (x_t - alpha * self.centre)
        return Prediction("eps", eps, x_t, alpha, sigma)


class World:
    """An evaluation of a known denoiser; see `Evaluation`."""

    def __init__(self, folder: Path, denoise: Denoise, clean: Tensor, info: DataInfo = POINTS):
        self.folder, self.clean, self.data, self.info = folder, clean, clean, info
        self.samples, self.labels, self.schedule = clean, None, SCHEDULE
        self.device, self.fingerprint = torch.device("cpu"), "data"
        self.notes: list[str] = []
        self.seeds = tuple(range(6))
        self._denoise = denoise

    def denoiser(self, role: str | None = None, labels: Tensor | None = None) -> Denoise:
        """The known one."""
        del role, labels
        return self._denoise

    def module(self, role: str) -> Any:
        """There is none."""
        raise NotImplementedError(role)

    def sampler(self, steps: int | None = None) -> Sampler:
        """DDIM."""
        settings: Any = DDIM.Settings
        return DDIM(settings(steps=steps or 10), build(self.info))

    def generate(self, sampler: Sampler, *, num: int = 0, callback: Any = None) -> Samples:
        """Float64 samples of the seeds, in batches of four."""
        seeds, parts, nfe = self.seeds[:num] if num else self.seeds, [], 0
        for first in range(0, len(seeds), 4):
            part = seeds[first : first + 4]
            noise = SeedDraws(part, stream="start").normal((len(part), *self.info.shape))
            draws = SeedDraws(part, stream="steps")
            made = sampler.sample(self._denoise, noise.double(), draws, callback=callback)
            parts, nfe = [*parts, made.x0], made.nfe
        return Samples(torch.cat(parts), nfe)

    def with_samples(self, samples: Tensor, name: str = "") -> World:
        """The same of others."""
        twin = copy.copy(self)
        twin.samples, twin.folder = samples, self.folder / name
        twin.folder.mkdir(parents=True, exist_ok=True)
        return twin

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Made anew."""
        del key
        return make()

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)
