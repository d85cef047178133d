"""Samplers: from noise to images over an explicit grid of times."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeAlias

import attrs
from torch import Tensor

from advdiff_core.errors import ContractError, Fault, RecipeError
from advdiff_core.interfaces.component import Component
from advdiff_core.settings import Spec

if TYPE_CHECKING:
    from advdiff_core.types import Prediction

__all__ = ["Denoise", "ImageDraws", "Sampler", "Samples", "StepCallback", "all_steps", "with_steps"]


class Denoise(Protocol):
    """A denoiser as samplers see it: every parametrization looks alike."""

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        """Prediction at `x_t` [B, ...] and times `t` [B]."""


class ImageDraws(Protocol):
    """Random numbers per image, keyed by the image's own seed: no dependence on the batch."""

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers `shape` = [B, ...]."""

    def child(self, *words: object) -> ImageDraws:
        """A fresh stream for the same images, named by `words`; it leaves this one alone."""


#: Called after each step with its index, the new state [B, ...] and the prediction; a tensor that
#: it returns takes the state's place.
StepCallback: TypeAlias = "Callable[[int, Tensor, Prediction], Tensor | None]"


class Samples(NamedTuple):
    """Result of a sampler.

    Attributes:
        x0: Samples [B, ...].
        nfe: Network evaluations per sample.
    """

    x0: Tensor
    nfe: int


class Sampler(Component):
    """Solves the reverse process over pairs `(t, t_next)` of an explicit grid.

    Contract: `nfe` equals the calls of the denoiser per sample; the grid is strictly decreasing,
    starts at `t_max` unless told otherwise and its last time is where sampling ends; results depend
    only on the denoiser, the grid, `x_T` and the image's own draws.

    Attributes:
        of_denoiser: True if an exact denoiser of the data gives samples of the data; False for
            samplers of models that are made otherwise, as consistency models are.
    """

    of_denoiser: ClassVar[bool] = True

    @property
    def linear(self) -> bool:
        """True if states are linear in earlier states, predictions and drawn numbers alone.

        The predictions may be those of several steps, and `Prediction.variance` a constant. Methods
        that treat the ways of the gradient differently (through the state, through the network) ask
        for it. False unless a sampler says otherwise: steps that clip, or that search, are not.
        """
        return False

    @abstractmethod
    def grid(self) -> Tensor:
        """Times [n + 1], float64, strictly decreasing; steps are its consecutive pairs."""

    @abstractmethod
    def sample(  # noqa: PLR0913 - the switches a caller may combine.
        self,
        denoise: Denoise,
        x: Tensor,
        draws: ImageDraws,
        *,
        grid: Tensor | None = None,
        grad_steps: tuple[int, ...] | None = None,
        checkpoint: bool = False,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Run the sampler.

        Args:
            denoise: The denoiser.
            x: Start [B, ...] at the grid's first time, scaled to `alpha x0 + sigma eps` there.
            draws: Random numbers of stochastic samplers.
            grid: Times to use instead of `grid()`.
            grad_steps: Indices of steps that keep a graph to the parameters and to `x`; None: no
                step does; the other steps run without gradient and pass the state on detached.
                `all_steps(n)` lists every step.
            checkpoint: Recompute the steps in `grad_steps` in the backward instead of storing them.
            callback: Called after each step with its index, the new state and the prediction; what
                it returns, unless that is None, takes the state's place.
        """

    def linear_step(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(a, b)` of the step `x_next = a * x + b * eps_hat` from `t` to `t_next`.

        Only samplers whose step is linear in the state and one prediction of the noise have them;
        for methods that treat the two paths of the gradient differently.

        Args:
            t: Times of any shape.
            t_next: Smaller times, same shape.

        Raises:
            ContractError: If the step of this sampler, with these settings, is not of that form.
        """
        del t, t_next
        message = f"the step of sampler {type(self).__name__} is not a * x + b * eps_hat"
        raise ContractError(
            message, where=self.build.path, fix="use ddim with eta = 0, or euler without churn"
        )


def with_steps(spec: Spec, steps: int) -> Spec:
    """A sampler's `spec` with another number of steps; of a wrapper, that of what it wraps.

    Raises:
        RecipeError: R10 if it has no key `steps` that may have this value.
    """
    names = attrs.fields_dict(type(spec.settings))
    inner = getattr(spec.settings, "sampler", None) if "sampler" in names else None
    if isinstance(inner, Spec):
        changed = attrs.evolve(spec.settings, sampler=with_steps(inner, steps))
    elif "steps" in names:
        changed = attrs.evolve(spec.settings, steps=steps)
    else:
        message = f"sampler {spec.use!r} has no key `steps`, {steps} steps are asked for"
        raise RecipeError([Fault(code="R10", key=spec.path, message=message)])
    return attrs.evolve(spec, settings=changed)


def all_steps(count: int) -> tuple[int, ...]:
    """Every step of a grid with `count` steps, for `grad_steps`."""
    return tuple(range(count))
