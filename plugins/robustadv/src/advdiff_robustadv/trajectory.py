"""Attacks on the path of sampling: states of the reverse chain are moved, and the chain goes on."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from advdiff_core import (
    Build,
    Denoise,
    Fault,
    ImageDraws,
    NoiseSchedule,
    Prediction,
    RecipeError,
    Sampler,
    Samples,
    Spec,
    StepCallback,
    expand,
    setting,
    settings,
)
from advdiff_core.interfaces.moved_path import MovedPath, Mover
from advdiff_core.math import norms
from advdiff_robustadv.rays import SOURCE
from advdiff_robustadv.reach import ReachSettings, ascend, reach, uniform_start

__all__ = ["Attacked", "AttackedSampler", "TrajectorySettings", "chosen_steps"]


@settings
class TrajectorySettings(ReachSettings):
    """Keys of an attack on the path of sampling."""

    kind: Literal["pgd", "random", "gaussian"] = setting(
        "pgd",
        help="projected gradient ascent; its random start alone; or, as a control, Gaussian noise "
        "of the ball's largest L2 norm",
    )
    objective: Literal["prediction-gap", "equivariance-residual"] = setting(
        "prediction-gap", help="what the ascent makes large", applies=("kind", ("pgd",))
    )
    attack_steps: int = setting(
        5, ge=1, le=1000, help="ascent steps at each attacked state", applies=("kind", ("pgd",))
    )
    step_scale: float = setting(
        0.5, gt=0, help="length of an ascent step as a share of the radius",
        applies=("kind", ("pgd",)),
    )  # fmt: skip
    attacked: int = setting(
        0, ge=0, unit="steps",
        help="steps whose state is moved before they are made, evenly spaced; 0: every step",
    )  # fmt: skip


def chosen_steps(total: int, wanted: int) -> tuple[int, ...]:
    """Indices of `wanted` of `total` steps, evenly spaced about the middle; all of them for 0."""
    if not wanted or wanted >= total:
        return tuple(range(total))
    return tuple((2 * place + 1) * total // (2 * wanted) for place in range(wanted))


class Attacked(Sampler):
    """Another sampler under attack: at chosen steps the state is moved inside a ball, then goes on.

    FOUND: the paper perturbs intermediate states `x_t` of the reverse chain. DERIVED: at chosen
    steps delta comes from n-step PGD on `|eps_hat(x_t + delta) - eps_hat(x_t)|^2` from a random
    start inside radius c r(t) (or a fixed one), `x_t` is replaced by `x_t + sigma delta`, and the
    sampler continues. Without a radius samples are those of the sampler itself, bit for bit. `nfe`
    counts the attack's evaluations, too. The sampler's own noise is that of the run without attack,
    so that the two can be compared image by image.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings(TrajectorySettings):
        """Keys of `use = "attacked"`."""

        sampler: Spec = setting(kind="sampler", help="the sampler that is attacked")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        inner = build.nested(settings.sampler)
        assert isinstance(inner, Sampler), "the loader looks it up among samplers"
        self.inner = AttackedSampler(inner, settings, build)

    def grid(self) -> Tensor:
        """Times [n + 1] of the attacked sampler."""
        return self.inner.sampler.grid()

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
        """Run it under attack from `x` [B, ...]; see `Sampler.sample`."""
        return self.inner.sample(
            denoise, x, draws,
            grid=grid, grad_steps=grad_steps, checkpoint=checkpoint, callback=callback,
        )  # fmt: skip

    def linear_step(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the attacked sampler, which the attack leaves as they are."""
        return self.inner.sampler.linear_step(t, t_next)


class AttackedSampler(MovedPath):
    """A sampler with an attack around it, for the component and for metrics.

    Args:
        sampler: The sampler.
        keys: The attack.
        build: What the component was told.

    Raises:
        RecipeError: R10 if there is no noise schedule.
    """

    def __init__(self, sampler: Sampler, keys: TrajectorySettings, build: Build) -> None:
        super().__init__(keys, build, sampler)
        if build.schedule is None:
            message = "an attack on the path needs a noise schedule, the recipe has none"
            raise RecipeError([Fault(code="R10", key=f"{build.path}.use", message=message)])
        self.keys = keys
        self.schedule: NoiseSchedule = build.schedule

    def mover(self, denoise: Denoise, draws: ImageDraws, times: Tensor) -> Mover | None:
        """The attack on a path of `times` [n + 1]; none of radius 0."""
        if self.keys.radius == 0:
            return None
        return _Assault(self.keys, self.schedule, denoise, draws, times)


class _Assault:
    """The moves of one run."""

    def __init__(
        self,
        keys: TrajectorySettings,
        schedule: NoiseSchedule,
        denoise: Denoise,
        draws: ImageDraws,
        times: Tensor,
    ) -> None:
        self.keys, self.denoise, self.draws = keys, denoise, draws
        self.times = times.double().cpu()
        self.scales = torch.stack([schedule.alpha(self.times), schedule.sigma(self.times)])
        self.chosen = frozenset(chosen_steps(len(times) - 1, keys.attacked))
        self.calls = 0

    def moved(self, index: int, x: Tensor) -> Tensor:
        """The state [B, ...] before step `index`; `x` itself where that is not attacked."""
        if index not in self.chosen:
            return x
        alpha, sigma = (scale.expand(len(x)).to(x) for scale in self.scales[:, index])
        radius = reach(self.keys, alpha, sigma, x[0].numel())
        normal = self.draws.child("attack", index).normal(tuple(x.shape)).to(x)
        return x + self._delta(index, x.detach(), normal, radius)

    def _delta(self, index: int, x: Tensor, normal: Tensor, radius: Tensor) -> Tensor:
        keys = self.keys
        if keys.kind == "gaussian":
            length = expand(self._longest(radius, x), x).to(x)
            return norms.steepest_ascent(normal, "l2") * length
        start = uniform_start(normal, radius, keys.norm)
        if keys.kind == "random":
            return start
        t = self.times[index].expand(len(x)).to(x)
        with torch.no_grad():
            clean = self._ask(x, t)
        return ascend(
            lambda delta: self._gap(clean, self._ask(x + delta, t), delta), start, radius,
            norm=keys.norm, steps=keys.attack_steps, step_scale=keys.step_scale,
        )  # fmt: skip

    def _longest(self, radius: Tensor, x: Tensor) -> Tensor:
        """Largest L2 norm in the ball [B]: of a corner, or of the sphere."""
        root: float = x[0].numel() ** 0.5
        return radius * root if self.keys.norm == "linf" else radius

    def _ask(self, x: Tensor, t: Tensor) -> Prediction:
        self.calls += 1
        return self.denoise(x, t)

    def _gap(self, clean: Prediction, moved: Prediction, delta: Tensor) -> Tensor:
        """What the ascent makes large [B]."""
        gap = moved.eps - clean.eps
        if self.keys.objective == "equivariance-residual":
            assert clean.sigma is not None
            gap = gap - delta / clean.sigma
        return gap.square().flatten(1).sum(dim=1)
