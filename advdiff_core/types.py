"""Tensor carriers and small typed values shared by core and plugins.

Shape letters: B batch, C channels, H W size, N tokens, D feature width. `[B, ...]` is `[B, C, H,
W]` for images and `[B, D]` for points.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from attrs import field, frozen
from torch import Tensor

from advdiff_core.math import parametrization

__all__ = [
    "Augmented",
    "Batch",
    "Budget",
    "Cost",
    "DataInfo",
    "Domain",
    "Noised",
    "Norm",
    "Prediction",
    "PredictionKind",
    "Subspace",
    "TapInfo",
    "Unit",
]

Norm = Literal["linf", "l2", "l1"]
Unit = Literal["image", "noise", "pixel"]
PredictionKind = Literal["eps", "x0", "v", "flow", "raw"]


@frozen
class Domain:
    """Range of valid pixel values, for example `Domain(-1.0, 1.0)`."""

    low: float
    high: float

    @property
    def span(self) -> float:
        """Width of the range: one `pixel` unit (1 on the [0, 1] scale) in these values."""
        return self.high - self.low


@frozen(kw_only=True, eq=False)
class Subspace:
    """The affine subspace that all clean samples lie in, where a dataset knows one.

    Attributes:
        origin: A point of it [D], float64, of flattened samples.
        basis: Orthonormal directions [r, D], float64.
        explained: Share of the variance of the samples it was fitted to that lies inside; 1 for
            samples that were made in it.
    """

    origin: Tensor
    basis: Tensor
    explained: float = 1.0

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest points [N, D] of the subspace to samples `x` [N, ...], float64."""
        return self.origin + (x.flatten(1).double() - self.origin) @ self.basis.T @ self.basis


@frozen(kw_only=True)
class DataInfo:
    """What is known of a dataset before its first batch.

    Attributes:
        shape: Shape of one sample, `(C, H, W)` for images, `(D,)` for points.
        count: Number of samples.
        domain: Range of valid values; None for data without one (points).
        classes: Number of classes; 0 without labels.
        subspace: Where all clean samples lie, if that is less than everywhere and known; left out
            when two descriptions are compared.
    """

    shape: tuple[int, ...]
    count: int
    domain: Domain | None = None
    classes: int = 0
    subspace: Subspace | None = field(default=None, eq=False, repr=False)

    @property
    def is_image(self) -> bool:
        """True for `(C, H, W)` samples."""
        return len(self.shape) == 3


class Batch(NamedTuple):
    """Samples as a dataset returns them.

    Attributes:
        x: Samples [B, ...], float32, in the dataset's domain.
        y: Labels [B], int64, or None.
    """

    x: Tensor
    y: Tensor | None


class Augmented(NamedTuple):
    """Samples on their way through augmentations, and as a training step gets them.

    Attributes:
        x: Samples [B, ...], float32, in the run's domain.
        y: Labels [B], int64; probabilities [B, K], float32, once samples were mixed; or None.
        c_augment: What was done to each sample [B, A], float32, for denoisers that are told; None
            if they are told nothing.
    """

    x: Tensor
    y: Tensor | None = None
    c_augment: Tensor | None = None


@frozen(kw_only=True)
class TapInfo:
    """A named place inside a backbone.

    Attributes:
        width: Channels (or features) of the tensor there.
        size: Spatial size `(H, W)`, `(N,)` for tokens, `()` for a vector.
    """

    width: int
    size: tuple[int, ...] = ()


@frozen
class Cost:
    """Network passes of one role in one step.

    Attributes:
        forwards: Forward passes.
        input_backwards: Backward passes towards an input only.
        parameter_backwards: Backward passes towards parameters.
    """

    forwards: int = 0
    input_backwards: int = 0
    parameter_backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.forwards + other.forwards,
            self.input_backwards + other.input_backwards,
            self.parameter_backwards + other.parameter_backwards,
        )


class Budget(NamedTuple):
    """Constraint on a perturbation.

    Attributes:
        norm: Norm of the ball.
        radius: Radius per sample [B], or one float.
        unit: What delta is added to. "image": to `x_t` as it is. "noise": to `eps`, so `x_t` moves
            by `sigma * delta`. "pixel": to the input, radius counted on the [0, 1] scale of its
            domain.
    """

    norm: Norm
    radius: Tensor | float
    unit: Unit = "image"


class Noised(NamedTuple):
    """Input of a network on one view.

    For a diffusion view `x_t = alpha(t) x0 + sigma(t) eps` holds unless a perturbation with a fixed
    target moved `x_t` alone. For an image view `t`, `eps`, `alpha`, `sigma` are None and `x_t` is
    the image.

    Attributes:
        x_t: Network input [B, ...].
        x0: Clean sample [B, ...].
        eps: Noise that explains `x_t` [B, ...]; moves with the perturbation when the target follows
            it.
        t: Time [B], in the schedule's own range.
        alpha: Signal scale [B, 1, ...].
        sigma: Noise scale [B, 1, ...].
        y: Labels [B] or None.
        delta: Perturbation in units of `x_t` [B, ...]; None on an unperturbed view.
        radius: Radius used per sample [B], in the budget's unit; None on an unperturbed view.
    """

    x_t: Tensor
    x0: Tensor
    eps: Tensor | None = None
    t: Tensor | None = None
    alpha: Tensor | None = None
    sigma: Tensor | None = None
    y: Tensor | None = None
    delta: Tensor | None = None
    radius: Tensor | None = None

    def truth(self, kind: PredictionKind) -> Tensor:
        """What a perfect denoiser predicts here, as `kind` [B, ...]; on a diffusion view alone."""
        assert self.eps is not None, "an image view has no noise to predict"
        assert self.alpha is not None
        assert self.sigma is not None
        if kind == "eps":
            return self.eps
        if kind == "x0":
            return self.x0
        if kind == "v":
            return self.alpha * self.eps - self.sigma * self.x0
        return self.eps - self.x0


class Prediction(NamedTuple):
    """Output of a network on one view, convertible to every parametrization.

    Attributes:
        kind: What `value` predicts: "eps", "x0", "v" or "flow" (velocity `eps - x0`);
            "raw" for a classifier.
        value: Prediction of that kind [B, ...]; logits [B, K] for a classifier.
        x_t: The input it was made for [B, ...].
        alpha: Signal scale [B, 1, ...]; None for a classifier.
        sigma: Noise scale [B, 1, ...]; None for a classifier.
        features: Tapped tensors by tap name.
        variance: Raw output of the network's variance head [B, ...], None if it has none; what it
            means is up to who reads it (Nichol & Dhariwal, 2021, equation 15).
    """

    kind: PredictionKind
    value: Tensor
    x_t: Tensor
    alpha: Tensor | None = None
    sigma: Tensor | None = None
    features: dict[str, Tensor] = {}  # noqa: RUF012 - never written to.
    variance: Tensor | None = None

    def _scales(self) -> tuple[Tensor, Tensor]:
        assert self.alpha is not None, "a classifier's output has no noise level"
        assert self.sigma is not None
        return self.alpha, self.sigma

    def to(self, kind: PredictionKind) -> Tensor:
        """The same prediction as another kind [B, ...]."""
        if kind == self.kind:
            return self.value
        alpha, sigma = self._scales()
        return parametrization.convert(
            self.value, source=self.kind, target=kind, x_t=self.x_t, alpha=alpha, sigma=sigma
        )

    @property
    def eps(self) -> Tensor:
        """Predicted unit noise `eps_hat` [B, ...]."""
        return self.to("eps")

    @property
    def x0(self) -> Tensor:
        """Predicted clean sample `x0_hat` [B, ...]."""
        return self.to("x0")

    @property
    def v(self) -> Tensor:
        """Predicted `v = alpha * eps - sigma * x0` [B, ...]."""
        return self.to("v")

    @property
    def flow(self) -> Tensor:
        """Predicted velocity of linear interpolation, `eps - x0` [B, ...]."""
        return self.to("flow")

    @property
    def score(self) -> Tensor:
        """Predicted score `-eps_hat / sigma` [B, ...]."""
        _, sigma = self._scales()
        return -self.eps / sigma

    @property
    def logits(self) -> Tensor:
        """Classifier output [B, K]."""
        return self.value

    def guided(self, without: Prediction, w: Tensor | float) -> Prediction:
        """This prediction led away from one without labels (Ho & Salimans, 2022, eq. 6).

        `cond + w (cond - uncond)`, the same for eps, x0, v and flow: each is affine in the others.

        Args:
            without: The prediction without labels, of the same kind at the same input.
            w: Strength [B], or one float; 0 is this prediction.
        """
        strength = expand(w, self.value) if isinstance(w, Tensor) else w
        return self._replace(value=self.value + strength * (self.value - without.value))


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Reshape per-sample `values` [B] to broadcast over `like` [B, ...]; a mask stays a mask."""
    shaped = values.reshape(-1, *([1] * (like.dim() - 1)))
    if values.dtype == torch.bool:
        return shaped
    return shaped.to(torch.promote_types(values.dtype, like.dtype))
