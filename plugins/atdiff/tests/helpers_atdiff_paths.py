"""Evaluations of a denoiser whose answers are known, for the tests of metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdiff_core import Build, DataInfo, Denoise, Prediction, Sampler
from advdiff_core.samplers import DDIM
from advdiff_core.schedules import VPLinear
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.testing.bench import World
from advdiff_core.testing.evaluation import BenchEvaluation
from advdiff_core.testing.known import Known

SCHEDULE = VPLinear(VPLinear.Settings(), Build(path="schedule"))


def build(make: Callable[[Spec], Any] | None = None, **keys: Any) -> Build:
    """What a metric or sampler is told."""
    return Build(**{"path": "evaluate.metrics[0]", "schedule": SCHEDULE, "make": make, **keys})


def component_of(spec: Spec) -> Any:
    """A nested component, built."""
    return spec.component(spec.settings, build())


def spec_of(kind: str, component: Any, use: str = "inner", **keys: Any) -> Spec:
    """A nested component, named."""
    return Spec(kind=kind, use=use, settings=component.Settings(**keys), component=component)


class Scaled(Known):
    """The exact denoiser of Gaussian data about 0, with its eps_hat multiplied by `factor`."""

    def __init__(self, std: float, factor: float = 1.0) -> None:
        super().__init__(SCHEDULE, std=std, mean=0.0)
        self.factor = factor

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction at `x_t` [B, ...]."""
        exact = super().__call__(x_t, t)
        return Prediction("eps", self.factor * exact.eps, x_t, exact.alpha, exact.sigma)


class Journey(BenchEvaluation):
    """An evaluation of that denoiser; labels that it is called with are kept."""

    def __init__(
        self, folder: Path, denoise: Denoise, data: Tensor, *, count: int = 6, steps: int = 10
    ) -> None:
        info = DataInfo(shape=tuple(data.shape[1:]), count=len(data))
        module = torch.nn.Identity()
        super().__init__(
            World(name="points", data=info), module, samples=data[:1], data=data, folder=folder
        )
        self.schedule, self.seeds = SCHEDULE, tuple(range(count))
        self.notes: list[str] = []
        self.called_with: list[Tensor | None] = []
        self._denoise, self._steps = denoise, steps

    def denoiser(self, role: str | None = None, labels: Tensor | None = None) -> Denoise:
        """The known one; `labels` [B]."""
        del role
        self.called_with.append(labels)
        return self._denoise

    def sampler(self, steps: int | None = None) -> Sampler:
        """DDIM."""
        made: Any = DDIM.Settings
        return DDIM(made(steps=steps or self._steps), build())

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)


class Spread:
    """A judge: deviation of the samples about 0, and their number."""

    needs_samples = True

    @settings
    class Settings:
        """Keys."""

        needs: bool = setting(default=True, help="look at samples")

    def __init__(self, settings: Any, build: Any) -> None:
        del build
        self.needs_samples = settings.needs

    def protocol(self) -> dict[str, str]:
        """What it is."""
        return {"what": "deviation"}

    def compute(self, evaluation: Any) -> dict[str, float]:
        """Two numbers."""
        x = evaluation.samples.double()
        return {"spread": float(x.square().mean().sqrt()), "count": float(len(x))}
