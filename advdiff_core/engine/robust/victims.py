"""What is attacked of a run: its classifier, a denoiser's prediction, a sampler's output.

Networks are copies: evaluated weights, float32, eval mode, frozen. `classifier` is the one place a
classifier under attack is made; a defence that wraps it wraps what this function returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, cast

from attrs import evolve, frozen
from torch import Tensor, nn

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.generate import weights_of
from advdiff_core.errors import UsageError
from advdiff_core.interfaces.classifier import Logits
from advdiff_core.types import expand

__all__ = [
    "DenoiserVictim",
    "SamplerVictim",
    "average_of",
    "classifier",
    "network",
    "role_of",
]

Denoise = Callable[[Tensor, Tensor, Tensor | None], Any]


def role_of(experiment: Experiment, role: str | None, *, denoiser: bool) -> str:
    """The role that is attacked: that of the name, or the only one of its kind.

    Args:
        experiment: The run.
        role: Its name, or None.
        denoiser: Whether a denoiser is wanted, or a classifier.

    Raises:
        UsageError: If there is no such role, or more than one to choose from.
    """
    roles = experiment.scene.roles
    known = [
        name
        for name, one in roles.items()
        if one.info.kind == "backbone" and (one.wear is not None) == denoiser
    ]
    if role in known:
        return role
    what = "denoiser" if denoiser else "classifier"
    listed = ", ".join(known) or "none"
    if role is None and len(known) == 1:
        return known[0]
    if role is None and "student" in known:
        return "student"
    if role is None:
        message = f"the run has {len(known)} {what}s ({listed})"
    else:
        message = f"{role!r} is no {what} of this run; it has {listed}"
    fix = "name one" if known else "attack a run that has one"
    if not known and not denoiser:
        fix = "attack a denoiser by --objective prediction-gap"
    raise UsageError(message, code="R10", where="--role", fix=fix)


def average_of(experiment: Experiment, role: str, ema: int | None) -> int:
    """Number of the average of the weights that is attacked; -1 for the weights as trained.

    Args:
        experiment: The run.
        role: Model role.
        ema: The number wanted; None for the one that metrics and samples use.

    Raises:
        UsageError: If the role has no such average.
    """
    sample = experiment.recipe.sample
    if ema is None and sample is not None and sample.role == role:
        ema = sample.ema
    if ema is None:
        return -1 if weights_of(experiment, role, None) is None else 0
    weights_of(experiment, role, ema)
    return max(ema, -1)


def network(experiment: Experiment, role: str, ema: int) -> nn.Module:
    """A copy of a role's network with the weights evaluated, float32, in eval mode, frozen.

    Args:
        experiment: The run; left as it is.
        role: Model role.
        ema: Number of the average; -1 for the weights as trained.
    """
    module = copy.deepcopy(experiment.scene.roles[role].module)
    module.load_state_dict(weights_of(experiment, role, ema) or {}, strict=False)
    for parameter in module.parameters():
        parameter.grad = None
    return module.float().eval().requires_grad_(False)


def classifier(experiment: Experiment, role: str, ema: int) -> nn.Module:
    """The network [B, ...] -> logits [B, K] under attack; see `network`."""
    return Logits(network(experiment, role, ema), role).eval()


@frozen(kw_only=True, eq=False)
class DenoiserVictim:
    """A denoiser at one noise level, whose squared deviation is to grow.

    Attributes:
        denoise: Predicted noise [B, ...] of `(x_t, t, labels)`.
        objective: "prediction-gap": away from the prediction at the clean `x_t`; "denoise": away
            from the noise that explains the moved input.
        x_t: Clean inputs [B, ...].
        t: Time of each [B].
        sigma: Noise scale of each [B].
        y: Labels [B], or None.
        target: Prediction at `x_t`, or the noise in it [B, ...].
    """

    denoise: Denoise
    objective: Literal["prediction-gap", "denoise"]
    x_t: Tensor
    t: Tensor
    sigma: Tensor
    y: Tensor | None
    target: Tensor
    labels: None = None

    def outputs(self, x: Tensor) -> Tensor:
        """Deviation [B, ...] of the predicted noise at `x` [B, ...]."""
        wanted = self.target
        if self.objective == "denoise":
            wanted = wanted + (x - self.x_t) / expand(self.sigma, x)
        return cast("Tensor", self.denoise(x, self.t, self.y)) - wanted

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean square [B] of `outputs` [B, ...]."""
        return outputs.square().flatten(1).mean(1)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """None: a denoiser is not right or wrong; `outputs` [B, ...]."""
        del outputs
        return None

    def rows(self, rows: Tensor) -> DenoiserVictim:
        """The same for the samples `rows` [N]."""
        return evolve(
            self, x_t=self.x_t[rows], t=self.t[rows], sigma=self.sigma[rows],
            y=None if self.y is None else self.y[rows], target=self.target[rows],
        )  # fmt: skip


@frozen(kw_only=True, eq=False)
class SamplerVictim:
    """A sampler, whose output is to move as far as possible when its start is moved.

    Attributes:
        sample: Samples x0 [B, ...] from `(x_T, labels, ids)`, with a graph to `x_T`.
        y: Labels [B], or None.
        ids: Identity of each sample, for the noise of stochastic samplers.
        target: Samples [B, ...] from the start that is not moved.
    """

    sample: Callable[[Tensor, Tensor | None, tuple[int, ...]], Tensor]
    y: Tensor | None
    ids: tuple[int, ...]
    target: Tensor
    labels: None = None

    def outputs(self, x: Tensor) -> Tensor:
        """How far the samples from `x` [B, ...] are from those of the clean start [B, ...]."""
        return self.sample(x, self.y, self.ids) - self.target

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean square [B] of `outputs` [B, ...]."""
        return outputs.square().flatten(1).mean(1)

    def broken(self, outputs: Tensor) -> Tensor | None:
        """None: a sample is not right or wrong; `outputs` [B, ...]."""
        del outputs
        return None

    def rows(self, rows: Tensor) -> SamplerVictim:
        """The same for the samples `rows` [N]."""
        return evolve(
            self, y=None if self.y is None else self.y[rows], target=self.target[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
        )  # fmt: skip
