"""Consistency training and distillation, plain and adversarial."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from advdiff_atdiff.consistency_checks import (
    base_view,
    require_average,
    require_denoiser,
    require_teacher,
)
from advdiff_atdiff.consistency_function import noise_ratio
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.consistency_queries import (
    ConsistencyHat,
    ConsistencyTarget,
    Earlier,
    MovedConsistencyTarget,
)
from advdiff_atdiff.distances import DistanceKeys
from advdiff_core import Build, LossTerm, Query, Step, View
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["ConsistencyDistillation", "ConsistencyTraining"]


@settings
class ConsistencyKeys(DistanceKeys):
    """Keys of both terms."""

    role: str = setting("student", ref="role", help="denoiser that is trained")
    view: str = setting(
        "clean", ref="view", help="view it looks at; a perturbed one is adversarial"
    )
    target: str = setting(
        "target", ref="role",
        help="role at the smaller time: one that follows `role`, or `role` itself, held constant",
    )  # fmt: skip
    weighting: Literal["uniform", "inverse-gap"] = setting(
        "uniform", help="weight of an interval: 1 (CM), or 1 over its length in sigma / alpha (iCT)"
    )
    moves: Literal["student", "target", "both"] = setting(
        "student", help="on a perturbed view, whose input delta moves (options A, B and C)"
    )


class _Consistency(LossTerm):
    """`w d(f(x_(t_(n+1)), t_(n+1)), sg f_target(x_(t_n), t_n))`, where delta may move an input."""

    settings: Any

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        grid = _grid(build)
        self._check(settings, build, grid)
        base = base_view(settings, build)
        self.distance = settings.build(build)
        moves, function = settings.moves, grid.function
        seen = base if moves == "target" else settings.view
        self.hat = ConsistencyHat(settings.role, seen, function)
        self.earlier = self._earlier(settings.view if moves == "both" else base, grid)
        self.goal: Query[Tensor] = ConsistencyTarget(settings.target, self.earlier, function)
        if moves == "target":
            self.goal = MovedConsistencyTarget(
                settings.target, settings.view, self.earlier, function
            )
        self.noised = View(base)
        self.needs = (self.hat, self.goal)
        if settings.weighting == "inverse-gap":
            self.needs = (*self.needs, self.noised)

    def _earlier(self, view: str, grid: ConsistencyGrid) -> Earlier:
        """The point at the smaller time, on the trajectory through a view."""
        return Earlier(view, grid)

    def forward(self, step: Step) -> Tensor:
        """The weighted distance of each sample [B]."""
        loss = self.distance(step.get(self.hat), step.get(self.goal))
        if self.settings.weighting == "uniform":
            return loss
        t = step.get(self.noised).t
        assert t is not None, "checked when built"
        grid = self.earlier.grid
        after = grid.before(t, step.nimg)
        gap = noise_ratio(grid.schedule, t) - noise_ratio(grid.schedule, after)
        return loss / gap.to(loss.dtype)

    def _check(self, keys: Any, build: Build, grid: ConsistencyGrid) -> None:
        require_denoiser(build, "role", keys.role)
        require_denoiser(build, "target", keys.target)
        require_average(build, "target", keys.target, of=keys.role)
        model, known = build.models.get(keys.role), grid.settings.sigma_data
        if model is not None and model.parametrization == "edm" and model.sigma_data != known:
            message = f"model {keys.role!r} has sigma_data {model.sigma_data}, the grid has {known}"
            fix = f"write sigma_data = {model.sigma_data} in schedule.density.sampler"
            refuse(build, "role", message, fix)


class ConsistencyTraining(_Consistency):
    """Consistency training: the student's start of the trajectory agrees with the target's.

    FOUND (Song et al., 2023, eq. 10 and algorithm 3): both see x0 noised by the same eps, at
    neighbouring times of the grid. With `target = "student"`, `distance = "pseudo-huber"` and
    `weighting = "inverse-gap"` it is improved consistency training (Song & Dhariwal, 2023). On a
    perturbed view it is adversarial; which input delta moves is UNKNOWN in the paper of AT_Diff:
    `moves` has three readings (DERIVED), and option A as our default. In A and C the target is a
    constant of the ascent, too, so that in C a step need not raise the loss; in B the gradient
    towards delta runs through the target network alone.
    """

    @settings
    class Settings(ConsistencyKeys):
        """Keys of `use = "consistency-training"`."""


class ConsistencyDistillation(_Consistency):
    """Consistency distillation: as consistency training, along the trajectory of a teacher.

    FOUND (Song et al., 2023, eq. 7 and algorithm 2): the point at the smaller time is one step of a
    solver on the teacher's probability-flow ODE. With `moves` "student" and "target" the teacher
    runs once for all passes over a batch, with "both" again at each, from the moved point.
    """

    @settings
    class Settings(ConsistencyKeys):
        """Keys of `use = "consistency-distillation"`."""

        teacher: str = setting("teacher", ref="role", help="frozen denoiser that is distilled")
        solver: Literal["heun", "euler"] = setting(
            "heun", help="step of the teacher's ODE: two forwards, or one"
        )

    def _earlier(self, view: str, grid: ConsistencyGrid) -> Earlier:
        """The point at the smaller time, on the teacher's trajectory through a view."""
        return Earlier(view, grid, self.settings.teacher, self.settings.solver)

    def _check(self, keys: Any, build: Build, grid: ConsistencyGrid) -> None:
        super()._check(keys, build, grid)
        require_teacher(build, "teacher", keys.teacher)


def _grid(build: Build) -> ConsistencyGrid:
    """The grid that the recipe's times are drawn from.

    Raises:
        RecipeError: R10 if they are drawn otherwise.
    """
    if not isinstance(build.times, ConsistencyGrid):
        message = "the recipe draws training times that have no neighbour on a grid"
        fix = 'write density = { sampler = { use = "consistency-grid" } } in [schedule]'
        refuse(build, "use", message, fix)
    assert isinstance(build.times, ConsistencyGrid)
    return build.times
