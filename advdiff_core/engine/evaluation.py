"""What metrics read of a trained run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.generate import (
    denoiser_of,
    evaluated_weights,
    evaluation_mode,
    generate,
    weights_of,
)
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.sampler import Denoise, Sampler, Samples, StepCallback, with_steps
from advdiff_core.types import Batch, DataInfo

__all__ = ["MAX_REFERENCE", "RunEvaluation"]

#: Most real samples that metrics compare with.
MAX_REFERENCE = 50_000

T = TypeVar("T")


class RunEvaluation:
    """See `advdiff_core.interfaces.metric.Evaluation`.

    Args:
        experiment: The run.
        folder: Where metrics may write files.
        decoded: Show latents as pictures; see `Metric.decoded`.

    Attributes:
        notes: Remarks of the metric that computes.
    """

    def __init__(self, experiment: Experiment, folder: Path, *, decoded: bool = False) -> None:
        self.folder = folder
        self.decoded = decoded
        self.notes: list[str] = []
        self._experiment = experiment
        self.seeds: tuple[int, ...] = ()
        self._samples: Tensor | None = None
        self._remembered: dict[Hashable, Any] = {}

    @property
    def samples(self) -> Tensor:
        """Generated samples [N, ...]."""
        assert self._samples is not None, "a metric without needs_samples asked for samples"
        return self._samples

    @samples.setter
    def samples(self, x: Tensor) -> None:
        """Set the samples [N, ...] of the next range of seeds."""
        self._samples = self._shown(x)

    def _shown(self, x: Tensor) -> Tensor:
        return self._experiment.source.decode(x).float() if self.decoded else x

    @property
    def reference(self) -> Tensor:
        """Indices of the real samples [M]."""
        return torch.arange(min(self.info.count, MAX_REFERENCE))

    @property
    def _clean(self) -> Batch:
        return self.remember("clean samples", self._read)

    def _read(self) -> Batch:
        source = self._experiment.source
        x, y = source.clean(self.reference)
        if self.decoded:
            x = source.dataset.originals(self.reference)
        return Batch(x.float(), y)

    @property
    def clean(self) -> Tensor:
        """Training samples without corruption [M, ...]."""
        return self._clean.x

    @property
    def labels(self) -> Tensor | None:
        """Labels of `clean` [M]."""
        return self._clean.y

    @property
    def data(self) -> Tensor:
        """Training samples as the model saw them [M, ...]."""
        source = self._experiment.source
        if not source.corruptions:
            return self.clean
        return self.remember(
            "data as seen", lambda: self._shown(source.batch(self.reference).x.float())
        )

    @property
    def info(self) -> DataInfo:
        """Description of the data."""
        source = self._experiment.source
        return source.pictures if self.decoded else source.info

    @property
    def fingerprint(self) -> str:
        """Digest of the dataset."""
        return self._experiment.source.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self._experiment.scene.compute.device

    def module(self, role: str) -> nn.Module:
        """The network with the weights being evaluated, in eval mode, as a copy of its own."""
        sample = self._experiment.recipe.sample
        average = sample.ema if sample is not None and sample.role == role else None
        return _Frozen(self._experiment, role, average)

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The run's noise schedule."""
        return self._experiment.scene.schedule

    def denoiser(
        self,
        role: str | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Denoise:
        """A role as a denoiser; see `Evaluation.denoiser`."""
        name, average = self._chosen(role)
        return denoiser_of(
            self._experiment, name, average, labels, taps=taps, stop_at=stop_at, weights=weights
        )

    def weights(self, role: str | None = None) -> dict[str, Tensor]:
        """The weights that training moves; see `Evaluation.weights`."""
        name, average = self._chosen(role)
        found = evaluated_weights(self._experiment, name, average)
        own = dict(self._experiment.scene.roles[name].module.named_parameters())
        moved = {n: w for n, w in found.items() if n in own and own[n].requires_grad}
        return moved or found

    def _chosen(self, role: str | None) -> tuple[str, int | None]:
        """A denoiser's role, and which of its averages is evaluated."""
        sample = self._experiment.recipe.sample
        assert role or sample, "a metric names the role where a recipe samples none"
        name = role or cast("Any", sample).role
        return name, sample.ema if sample is not None and sample.role == name else None

    def sampler(self, steps: int | None = None) -> Sampler:
        """The run's sampler, built anew."""
        sample = self._experiment.recipe.sample
        assert sample is not None, "samples are asked for where a recipe can be sampled"
        spec = sample.spec if steps is None else with_steps(sample.spec, steps)
        return cast("Sampler", self._experiment.make(spec))

    def generate(
        self, sampler: Sampler, *, num: int = 0, callback: StepCallback | None = None
    ) -> Samples:
        """Samples by another sampler, of the same seeds."""
        seeds = self.seeds[:num] if num else self.seeds
        batch = self._experiment.recipe.evaluate.batch
        made = generate(self._experiment, seeds, batch=batch, sampler=sampler, callback=callback)
        return Samples(self._shown(made.x0), made.nfe)

    def with_samples(self, samples: Tensor, name: str = "") -> RunEvaluation:
        """The same evaluation of other samples [N, ...]; what was read or remembered is shared."""
        twin = copy.copy(self)
        twin._samples = samples
        twin.folder = self.folder / name
        twin.folder.mkdir(parents=True, exist_ok=True)
        return twin

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returned when `key` was first asked for."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return cast("T", self._remembered[key])

    def note(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.notes:
            self.notes.append(text)


class _Frozen(nn.Module):
    """A role's network with given weights that leaves the network itself untouched.

    What it returns has a graph to an input that wants one, and none to the parameters.
    """

    def __init__(self, experiment: Experiment, role: str, ema: int | None) -> None:
        super().__init__()
        self._role = experiment.scene.roles[role]
        named = self._role.module.named_parameters()
        averaged = weights_of(experiment, role, ema) or {}
        self._weights = {name: p.detach() for name, p in named} | averaged

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network; gradients reach inputs alone."""
        module = self._role.module
        device = next(module.parameters()).device
        args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
        with evaluation_mode(module):
            return functional_call(module, self._weights, args, kwargs)
