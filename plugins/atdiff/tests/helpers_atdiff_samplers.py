"""A denoiser with a known answer, and samplers around samplers, for tests of corrections."""

from __future__ import annotations

from typing import Any

from attrs import evolve
from torch import Tensor

from advdiff_core import Build, DataInfo, Prediction, Samples, SeedDraws
from advdiff_core.schedules import VPLinear
from advdiff_core.settings import Spec
from advdiff_core.types import expand

SCHEDULE = VPLinear(VPLinear.Settings(), Build(path="schedule"))
SHAPE = (3, 4, 4)
SEEDS = [5, 6, 7]


class Gaussian:
    """Data N(0.3, std^2) in each entry; what it was asked is kept.

    `gain` makes its noise too large, as that of a network in sampling is.
    """

    def __init__(self, std: float = 0.5, gain: float = 1.0, schedule: Any = SCHEDULE) -> None:
        self.std, self.gain, self.schedule = std, gain, schedule
        self.times: list[Tensor] = []
        self.inputs: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction at `x_t` [B, ...]."""
        self.times.append(t.double())
        self.inputs.append(x_t.detach())
        alpha = expand(self.schedule.alpha(t.double()), x_t).to(x_t)
        sigma = expand(self.schedule.sigma(t.double()), x_t).to(x_t)
        shrink = sigma / (alpha.square() * self.std**2 + sigma.square())
        eps = self.gain * shrink * (x_t - alpha * 0.3)
        return Prediction("eps", eps, x_t, alpha, sigma)


def build(**keys: Any) -> Build:
    """What a sampler is told."""
    data = DataInfo(shape=SHAPE, count=40)
    return Build(path="sample", **{"data": data, "schedule": SCHEDULE, **keys})


def wrapped(component: Any, inner: Any, *, steps: int = 6, told: Any = None, **keys: Any) -> Any:
    """A sampler around `inner` of so many steps."""
    told = told or build()
    spec = Spec(kind="sampler", use="inner", settings=inner.Settings(steps=steps), component=inner)
    making = evolve(told, make=lambda spec: spec.component(spec.settings, told))
    return component(component.Settings(sampler=spec, **keys), making)


def run(sampler: Any, denoise: Any, seeds: list[int] = SEEDS, **how: Any) -> Samples:
    """Float64 samples of some seeds."""
    x = SeedDraws(seeds, stream="start").normal((len(seeds), *SHAPE)).double()
    return sampler.sample(denoise, x, SeedDraws(seeds, stream="steps"), **how)
