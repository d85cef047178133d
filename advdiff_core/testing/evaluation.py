"""What metrics under test read: samples and data that are given, a small network, a sampler."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advdiff_core.draws import SeedDraws
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.sampler import Denoise, Sampler, Samples, StepCallback
from advdiff_core.samplers import DDIM
from advdiff_core.step.denoiser import Wear
from advdiff_core.testing import bench
from advdiff_core.testing.bench import World

__all__ = ["BenchEvaluation"]

T = TypeVar("T")

#: Steps of the sampler that stands for a run's own.
STEPS = 4


class BenchEvaluation:
    """See `advdiff_core.interfaces.metric.Evaluation`; nothing is remembered.

    Args:
        world: The data's description.
        module: The network of every role.
        samples: Generated samples [N, ...].
        data: Clean samples, and the data as seen [M, ...].
        folder: Where a metric may write.
        critics: Discriminators by role.
    """

    def __init__(  # noqa: PLR0913 - what there is to read.
        self,
        world: World,
        module: nn.Module,
        *,
        samples: Tensor,
        data: Tensor,
        folder: Path,
        critics: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.samples, self.clean, self.data, self.folder = samples, data, data, folder
        self.info, self.schedule = world.data, bench.schedule("vp-linear")
        self.labels = _labels_of(data, world.data.classes)
        self.fingerprint = str(hash(data.numpy().tobytes()))
        self.device = torch.device("cpu")
        self.seeds = tuple(range(len(samples)))
        self._module = module.requires_grad_(False)
        self._critics = dict(critics or {})

    def module(self, role: str) -> nn.Module:
        """The network, or the critic of that name."""
        return self._critics.get(role, self._module)

    def denoiser(
        self,
        role: str | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Denoise:
        """The network as a denoiser that predicts noise; `labels` [B], features of `taps`."""
        del role
        wear = Wear(schedule=self.schedule)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self._module, dict(weights or {}), args, kwargs)

        return lambda x_t, t: wear(forward, x_t, t, labels, taps=taps, stop_at=stop_at)

    def weights(self, role: str | None = None) -> dict[str, Tensor]:
        """All weights of the network."""
        del role
        return {name: p.detach() for name, p in self._module.named_parameters()}

    def sampler(self, steps: int | None = None) -> Sampler:
        """DDIM of a few steps."""
        told = Build(path="sample", data=self.info, schedule=self.schedule)
        return DDIM(_settings(steps or STEPS), told)

    def generate(
        self, sampler: Sampler, *, num: int = 0, callback: StepCallback | None = None
    ) -> Samples:
        """Samples of the first seeds."""
        seeds = self.seeds[:num] if num else self.seeds
        noise = SeedDraws(seeds, stream="start").normal((len(seeds), *self.info.shape))
        x_T = noise * self.schedule.sigma(sampler.grid()[0]).float()
        draws = SeedDraws(seeds, stream="steps")
        return sampler.sample(self.denoiser(), x_T, draws, callback=callback)

    def with_samples(self, samples: Tensor, name: str = "") -> BenchEvaluation:
        """The same of other samples [N, ...]."""
        twin = copy.copy(self)
        twin.samples, twin.folder = samples, self.folder / name
        twin.folder.mkdir(parents=True, exist_ok=True)
        return twin

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returns."""
        del key
        return make()

    def note(self, text: str) -> None:
        """Nothing."""
        del text


def _settings(steps: int) -> Any:
    # mypy cannot see the keys that a sampler's Settings inherits.
    made: Any = DDIM.Settings
    return made(steps=steps)


def _labels_of(x: Tensor, classes: int) -> Any:
    """Labels [M] that belong to samples `x` [M, ...], in whatever order these come."""
    if not classes:
        return None
    return (x.double().flatten(1).sum(1).abs() * 1000).long() % classes
