"""Metrics of generated samples and trained models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from torch import Tensor

from advdiff_core.interfaces.component import Component

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from advdiff_core.interfaces.noise_schedule import NoiseSchedule
    from advdiff_core.interfaces.sampler import Denoise, Sampler, Samples, StepCallback
    from advdiff_core.types import DataInfo

__all__ = ["Evaluation", "Metric"]

T = TypeVar("T")


class Evaluation(Protocol):
    """What a metric may read. Tensors are float32 on the CPU, in the data's domain.

    Data are read when they are first asked for.
    """

    @property
    def samples(self) -> Tensor:
        """Generated samples [N, ...]."""

    @property
    def clean(self) -> Tensor:
        """Training samples without corruption [M, ...]."""

    @property
    def data(self) -> Tensor:
        """Training samples as the model saw them [M, ...]; `clean` itself if nothing is damaged."""

    @property
    def labels(self) -> Tensor | None:
        """Labels of `clean` [M]."""

    @property
    def info(self) -> DataInfo:
        """Description of the data."""

    @property
    def fingerprint(self) -> str:
        """Digest of the dataset that `clean` was read from."""

    @property
    def folder(self) -> Path:
        """Where a metric may write files of its own."""

    @property
    def device(self) -> torch.device:
        """Where the run's networks are; a metric's own networks run best there."""

    def module(self, role: str) -> nn.Module:
        """The network of a role, in eval mode, with the weights being evaluated.

        Its output has a graph to an input that requires a gradient, and none to the parameters.
        """

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The run's noise schedule."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each of `samples`."""

    def denoiser(
        self,
        role: str | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Denoise:
        """A role as a denoiser with the weights being evaluated, in eval mode, in full precision.

        A prediction has a graph to an input that requires a gradient, and none to the parameters
        but to those among `weights`.

        Args:
            role: Model role; the one that is sampled if None.
            labels: Labels [B] of what it is called with, for class-conditional networks.
            taps: Features that predictions hold, by name.
            stop_at: Tap at which the network stops; predictions then hold nothing but features.
            weights: Weights by name that take the place of those being evaluated, as `weights`
                gives them: for analyses of gradients towards weights.
        """

    def weights(self, role: str | None = None) -> dict[str, Tensor]:
        """The weights being evaluated of a denoiser that training moves, by name, detached.

        Args:
            role: Model role; the one that is sampled if None.
        """

    def sampler(self, steps: int | None = None) -> Sampler:
        """The run's sampler, built anew.

        Args:
            steps: Number of steps instead of the recipe's.

        Raises:
            RecipeError: R10 if the sampler has no key `steps`.
        """

    def generate(
        self, sampler: Sampler, *, num: int = 0, callback: StepCallback | None = None
    ) -> Samples:
        """Samples by another sampler, of the same seeds and labels as `samples`.

        Args:
            sampler: The sampler.
            num: The first so many seeds; 0 for all.
            callback: Told the steps of each batch of images, from 0 on.
        """

    def with_samples(self, samples: Tensor, name: str = "") -> Evaluation:
        """The same evaluation of other samples, for metrics that run others.

        Args:
            samples: Samples [N, ...], as `generate` gives them.
            name: Folder below `folder` for the files of what is run; "" for `folder` itself.
        """

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make()` returns, made once per evaluation for all metrics and ranges of seeds.

        Args:
            key: Names the value and all it depends on, apart from the data and the networks.
            make: Makes it from the data or the networks, never from `samples`.
        """

    def note(self, text: str) -> None:
        """Add a remark to the protocol of the numbers being computed, such as too few samples."""


class Metric(Component):
    """Computes named numbers. A number is stored with its protocol, never alone.

    Attributes:
        needs_samples: False for numbers of the networks alone, such as a classifier's accuracy;
            they are computed once, also for recipes that cannot be sampled, and `samples` must
            not be asked for.
        decoded: Of latents it sees the pictures: decoded samples, real images, their description.
            False for numbers of the samples as the networks see them.
    """

    needs_samples: ClassVar[bool] = True
    decoded: ClassVar[bool] = True

    @abstractmethod
    def protocol(self) -> Mapping[str, object]:
        """What the number depends on: features, sample count, resize rule, seeds."""

    @abstractmethod
    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; lower-is-better or higher-is-better is said in the docstring."""
