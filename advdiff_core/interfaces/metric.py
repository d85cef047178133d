"""Metrics of generated samples and trained models."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from advdiff_core.interfaces.component import Component

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from advdiff_core.types import DataInfo

__all__ = ["Evaluation", "Metric"]


class Evaluation(Protocol):
    """What a metric may read. Tensors are float32 in the data's domain."""

    @property
    def samples(self) -> Tensor:
        """Generated samples [N, ...]."""

    @property
    def clean(self) -> Tensor:
        """Training samples without corruption [M, ...]."""

    @property
    def data(self) -> Tensor:
        """Training samples as the model saw them [M, ...]."""

    @property
    def labels(self) -> Tensor | None:
        """Labels of `clean` [M]."""

    @property
    def info(self) -> DataInfo:
        """Description of the data."""

    @property
    def folder(self) -> Path:
        """Where a metric may write files of its own."""

    def module(self, role: str) -> nn.Module:
        """The network of a role, in eval mode, with the weights being evaluated."""


class Metric(Component):
    """Computes named numbers. A number is stored with its protocol, never alone."""

    @abstractmethod
    def protocol(self) -> Mapping[str, object]:
        """What the number depends on: features, sample count, resize rule, seeds."""

    @abstractmethod
    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Numbers by name; lower-is-better or higher-is-better is said in the docstring."""
