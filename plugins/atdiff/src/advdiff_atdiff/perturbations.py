"""Perturbations of the noised sample: free, and by projected gradient steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advdiff_atdiff import balls
from advdiff_atdiff.neighbours import Neighbours
from advdiff_core import (
    Budget,
    Build,
    Draws,
    Forward,
    LossTerm,
    ModelInfo,
    Noised,
    Perturbation,
    Probe,
    Query,
    SearchCost,
    Spec,
    Step,
    View,
    expand,
)
from advdiff_core.interfaces.requirements import nested_term, refuse, require_noise, require_noised
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings

__all__ = ["PGD", "BallSettings", "Free"]

#: The paper, for `advdiff explain`; the README says how certain each part is.
SOURCE = (
    "Improved Diffusion-based Generative Model with Better Adversarial Robustness "
    "(arXiv 2502.17099, eq. 14)"
)


@settings
class BallSettings:
    """Keys of the ball, of the steps in it, and of the target."""

    alpha: float = setting(0.1, ge=0.0, help="L2 length of a step over a whole sample")
    rho: float = setting(
        0.1, ge=0.0, help="radius of the ball, as a root mean square per entry; 0 is plain training"
    )
    norm: Literal["l2", "linf", "l1"] = setting("l2", help="norm of the ball and of the steps")
    top: int = setting(
        1, ge=1, applies=("norm", ("l1",)), help="entries that a step moves, the largest first"
    )
    radius: Literal["constant", "neighbours"] = setting(
        "constant", help="rho at every t; or the distance to the next coarser level, at most rho"
    )
    steps_apart: int = setting(
        50, ge=2, le=100_000, applies=("radius", ("neighbours",)),
        help="steps of the sampler whose levels are neighbours",
    )  # fmt: skip
    target: Literal["moved", "fixed"] = setting(
        "moved", help="the noise that explains the moved input, which keeps x0; or eps as it is"
    )
    ascent: Literal["full", "frozen"] = setting(
        "full", applies=("target", ("moved",)),
        help="whether the moved target is part of the ascent's gradient, or a constant in it",
    )  # fmt: skip


class _Ball(Perturbation):
    """A ball around `x_t`, of one size in every norm, and steps uphill in it."""

    settings: Any
    source: ClassVar[str] = SOURCE
    unit: Literal["image"] = "image"

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.follows = settings.target == "moved"
        self.target_gradient = settings.ascent == "full"
        if self.follows:
            require_noise(build)
        shape = build.data.shape if build.data is not None else ()
        if shape and settings.norm == "l1" and settings.top > torch.Size(shape).numel():
            message = f"a step on {settings.top:,} entries of samples of shape {list(shape)}"
            refuse(build, "top", message, "name at most as many as a sample has")
        self._neighbours: Neighbours | None = None
        if settings.radius == "neighbours" and build.schedule is not None:
            self._neighbours = Neighbours(build.schedule, settings.steps_apart)

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """Nothing; refuses images where the noise level is asked for.

        Raises:
            RecipeError: R10 if `base` is a view of images, and the target moves or the radius
                depends on time.
        """
        if self.follows or self.settings.radius == "neighbours":
            require_noised(self.build, base)
        return ()

    def check_readers(self, readers: Mapping[str, ModelInfo]) -> None:
        """Refuse a moved target on a view that no denoiser looks at.

        Raises:
            RecipeError: R10, naming who does.
        """
        if self.follows and all(info.parametrization == "none" for info in readers.values()):
            names = " and ".join(map(repr, readers))
            message = f"only {names} looks at this view, no denoiser, so that no target can move"
            refuse(self.build, "target", message, 'write target = "fixed"')

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The ball of the settings around each sample."""
        del rng
        keys, entries = self.settings, noised.x_t[0].numel()
        rms = noised.x_t.new_full((len(noised.x_t),), keys.rho, dtype=torch.float64)
        if self._neighbours is not None:
            assert noised.t is not None, "needs() refuses images"
            rms = torch.minimum(rms, self._neighbours.rms(noised.t))
        radius = balls.radius(rms, keys.norm, entries)
        precise = torch.promote_types(noised.x_t.dtype, torch.float32)
        return Budget(keys.norm, radius.to(precise), "image")

    def ahead(self, delta: Tensor, gradient: Tensor) -> Tensor:
        """Delta [B, ...] after one step along `gradient` [B, ...]."""
        keys = self.settings
        return balls.ascend(delta, gradient, alpha=keys.alpha, norm=keys.norm, top=keys.top)


class Free(_Ball):
    """Free adversarial training of a denoiser: the backward that trains it also moves its input.

    For a view of a player with `passes = K` and `update = "pass"`: on one batch, with the same
    times and noise, the optimizer and the averages step K times, and delta moves K - 1 times
    between them, from zero, so that the first pass is plain training (Shafahi et al., 2019,
    "Adversarial training for free"). Nothing is carried over to the next batch. With
    `update = "batch"` the weights move once, by the mean gradient of the K passes (FreeLB, Zhu et
    al., 2020). With `passes = 1` it is plain training.

    FOUND in the released code: zero start, the steps, the ball, and optimizer and averages at
    every pass. UNKNOWN: whether the paper's ascent is `full` or, as released, `frozen`, which
    lowers the loss of a perfect denoiser; `full` is our default.

    On a view of images with `target = "fixed"` it trains a classifier.
    """

    @settings
    class Settings(BallSettings):
        """Keys of `use = "free"`."""

    settings: Settings
    free: ClassVar[bool] = True

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Zero: the first pass is plain training."""
        del budget, probe, rng
        return torch.zeros_like(noised.x_t)

    def update(self, delta: Tensor, gradient: Tensor, budget: Budget) -> Tensor:
        """One step uphill, by the gradient's direction alone; the core projects it."""
        del budget
        return self.ahead(delta, gradient)


class PGD(_Ball):
    """Projected gradient steps on the denoising loss, before one update (Madry et al., 2018).

    What `free` is measured against: each of its `steps` costs a forward and a backward of its own.
    What grows is the squared error of `role` in its own parametrization, or any loss term, with
    the target that training will see. FOUND: that the paper compares with PGD; its steps and sizes
    there are UNKNOWN, those of `free` are our defaults.
    """

    @settings
    class Settings(BallSettings):
        """Keys of `use = "pgd"`."""

        steps: int = setting(3, ge=1, le=1000, help="gradient steps before the update")
        role: str = setting("student", ref="role", help="denoiser whose loss grows")
        term: Spec | None = setting(
            None, kind="loss_term",
            help="loss term that grows instead; its own keys name the model and the moved view",
        )  # fmt: skip
        start: Literal["zero", "uniform"] = setting(
            "zero", help="where it starts: at the sample, or uniformly in the ball"
        )
        start_scale: float = setting(
            1.0, gt=0.0, le=1.0, applies=("start", ("uniform",)),
            help="radius of the ball of the start, as a share of the ball's",
        )  # fmt: skip

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        spec = settings.term
        self.term: LossTerm | None = None if spec is None else nested_term(build, spec)

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """What the loss reads at moved inputs.

        Raises:
            RecipeError: R10 if `role` has no denoising loss on this view.
        """
        if self.term is not None:
            return self.term.needs
        model = self.build.models.get(self.settings.role)
        if model is not None and model.parametrization == "none":
            message = f"model {self.settings.role!r} is no denoiser: it has no loss that could grow"
            refuse(self.build, "role", message, 'name a denoiser, or write term = { use = "..." }')
        require_noised(self.build, base)
        return (Forward(self.settings.role, base), View(base))

    def cost(self) -> SearchCost:
        """One probe and one backward towards the input per step."""
        return SearchCost(self.settings.steps, self.settings.steps)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Steps uphill, in the ball after each."""
        radius = budget.radius
        assert isinstance(radius, Tensor), "one number per sample"
        delta = self._start(noised, radius, rng)
        for _ in range(self.settings.steps):
            leaf = delta.detach().requires_grad_()
            gradient = probe.gradient(self._loss(probe.at(leaf), probe.base), leaf)
            ahead = self.ahead(leaf.detach(), gradient)
            delta = norms.project(ahead, norm=budget.norm, radius=radius)
        return delta

    def _start(self, noised: Noised, radius: Tensor, rng: Draws) -> Tensor:
        if self.settings.start == "zero":
            return torch.zeros_like(noised.x_t)
        unit = norms.uniform_in_ball(
            noised.x_t.shape, norm=self.settings.norm, radius=self.settings.start_scale, draws=rng
        )
        return (unit * expand(radius, noised.x_t)).to(noised.x_t.dtype)

    def _loss(self, step: Step, base: str) -> Tensor:
        """What grows [B]."""
        if self.term is not None:
            loss: Tensor = self.term(step)
            return loss
        prediction = step.get(Forward(self.settings.role, base))
        error = prediction.value - step.get(View(base)).truth(prediction.kind)
        # Summed, not averaged: only the direction is used, and means underflow first.
        return error.square().flatten(1).sum(1)
