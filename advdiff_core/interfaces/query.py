"""Queries: typed values of a training step that terms of different plugins share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from advdiff_core.draws import Draws
    from advdiff_core.interfaces.component import ModelInfo
    from advdiff_core.interfaces.noise_schedule import NoiseSchedule
    from advdiff_core.interfaces.perturbation import Perturbation
    from advdiff_core.types import Prediction

__all__ = ["Mode", "Network", "Query", "Setup", "Step", "ViewSetup", "input_gradient"]

T = TypeVar("T")

#: How a network runs: as in training, or as in evaluation.
Mode = Literal["train", "eval"]
T_co = TypeVar("T_co", covariant=True)


class ViewSetup(Protocol):
    """A view as declared by the recipe."""

    @property
    def base(self) -> str | None:
        """View it perturbs; None for the roots "clean" and "image"."""

    @property
    def root(self) -> str:
        """Root at the bottom of its chain: "clean" or "image"."""

    @property
    def perturbation(self) -> Perturbation | None:
        """What perturbs it; None for roots."""


class Setup(Protocol):
    """The static part of a run: what queries may depend on before any batch is seen."""

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """Model roles by name."""

    @property
    def views(self) -> Mapping[str, ViewSetup]:
        """Views by name."""

    @property
    def schedule(self) -> NoiseSchedule | None:
        """The noise schedule."""


class Network(Protocol):
    """A role's network as queries run it: counted, autocast, with the gradient rules of the step.

    A role trained by the current player, or by a later one in this step, builds a graph to its
    parameters; another player's role passes gradients to its input only; a frozen role runs without
    gradient unless `through`.
    """

    def denoise(  # noqa: PLR0913 - the arguments of one forward.
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
        guidance: Tensor | None = None,
        recompute: bool = False,
    ) -> Prediction:
        """Prediction of a denoiser at `x_t` [B, ...] and times `t` [B].

        `guidance` [B] tells a network that is `guided` the strength that it is to have inside. With
        `recompute` a backward runs the forward again (uncounted) instead of keeping activations.
        """

    def classify(
        self,
        x: Tensor,
        *,
        c_noise: Tensor | None = None,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
        through: bool = False,
    ) -> Prediction:
        """Output of a backbone without parametrization at `x` [B, ...]; `value` is logits [B, K].

        `c_noise` [B] tells it a noise level, where it is made for noised samples.
        """

    def score(
        self,
        x: Tensor,
        *,
        reference: Tensor | None = None,
        labels: Tensor | None = None,
        through: bool = True,
    ) -> Tensor:
        """Logits [B, ...] of a discriminator at `x` [B, ...]."""


class Step(Protocol):
    """One batch on its way through the terms. Eight names, and no method knowledge.

    `get` memoizes: equal queries share one result for the life of the step. Never edit in place
    what it returns.
    """

    @property
    def x0(self) -> Tensor:
        """Clean samples [B, ...]."""

    @property
    def y(self) -> Tensor | None:
        """Labels [B] or None."""

    @property
    def nimg(self) -> int:
        """Images seen before this step."""

    @property
    def setup(self) -> Setup:
        """Roles, views and schedule."""

    def get(self, query: Query[T]) -> T:
        """The value of a query.

        Raises:
            UndeclaredQueryError: If no term or query declared it in `needs`.
        """

    def network(self, role: str, *, mode: Mode = "train") -> Network:
        """The network of a role, for queries that run it themselves; calls are counted.

        With mode "eval" it runs as evaluation does (running statistics, no dropout) and passes
        gradients to its input alone; nothing in it changes.
        """

    def rng(self, stream: str) -> Draws:
        """Random numbers keyed by (seed, step, stream): the same whatever else the recipe holds."""

    def at(self, view: str, x: Tensor) -> Step:
        """A probe: this step with the input of `view` replaced by `x` [B, ...]."""


class Query(ABC, Generic[T_co]):
    """A frozen, hashable value naming something a step can compute.

    Subclasses are `@attrs.frozen` classes whose fields are hashable. `needs` declares every other
    query that `compute` reads, so the plan knows order, taps and cost before the run.
    """

    #: True if the value carries no graph to any parameter (targets, perturbed views).
    detached: ClassVar[bool] = False
    #: True if the networks that `compute` runs itself are probed (`step.at`): gradients pass
    #: through them to their inputs alone, also while their own player acts.
    probing: ClassVar[bool] = False

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """Other queries read by `compute`."""
        del setup
        return ()

    @abstractmethod
    def compute(self, step: Step) -> T_co:
        """The value, from `step` alone; never edits a tensor got from it."""

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """Network forwards that `compute` itself runs, by role (not those of its needs)."""
        del setup
        return {}

    def input_backwards(self, setup: Setup) -> Mapping[str, int]:
        """Input-only backward passes that `compute` itself runs, by role."""
        del setup
        return {}

    def work(self, setup: Setup) -> Mapping[str, tuple[float, float]]:
        """Forwards on average, by role, and how many of them a later backward passes.

        For operations per second: a query whose forwards are drawn, or mostly without a graph, says
        here what `forwards` cannot.
        """
        return {role: (count, count) for role, count in self.forwards(setup).items()}


def input_gradient(objective: Tensor, x: Tensor) -> Tensor:
    """Gradient of the summed `objective` [B] towards the input `x` [B, ...] alone, detached.

    Runs through no parameter and never touches `.grad`. Each call is one input-only backward.
    """
    (gradient,) = torch.autograd.grad(objective.sum(), x)
    return gradient.detach()
