"""Latent consistency distillation, plain and adversarial."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from advdiff_atdiff.consistency_checks import (
    base_view,
    require_average,
    require_denoiser,
    require_teacher,
)
from advdiff_atdiff.distances import l2, pseudo_huber_mean
from advdiff_atdiff.latent_grid import LatentGrid
from advdiff_atdiff.latent_queries import (
    Guidance,
    GuidedEarlier,
    GuidedHat,
    GuidedTarget,
    MovedGuidedTarget,
)
from advdiff_core import Build, LossTerm, Query, Step
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["LatentConsistency"]


class LatentConsistency(LossTerm):
    """Latent consistency distillation: one network learns a guided teacher in a few steps.

    FOUND (Luo et al., 2023, algorithm 1, and its released code): the teacher goes k times back by
    one DDIM step, guided with a strength w that is drawn for each sample; the student is told w and
    agrees with the target network at the earlier point. The times come from `latent-grid`, which
    knows k. Latents or pixels, labels or prompts: all that matters is that the teacher knows labels
    and predicts without them, too. On a perturbed view it is adversarial; which input delta moves
    is UNKNOWN in the paper of AT_Diff: `moves` has three readings (DERIVED), and option A as our
    default. A step costs one forward of the student, two of the teacher and one of the target.
    """

    @settings
    class Settings:
        """Keys of `use = "latent-consistency"`.

        Raises:
            ValueError: If the range of strengths is empty.
        """

        role: str = setting("student", ref="role", help="denoiser that is trained")
        teacher: str = setting("teacher", ref="role", help="frozen denoiser that knows labels")
        target: str = setting(
            "target", ref="role",
            help="role at the earlier time: one that follows `role`, or `role` itself, constant",
        )  # fmt: skip
        view: str = setting(
            "clean", ref="view", help="view it looks at; a perturbed one is adversarial"
        )
        moves: Literal["student", "target", "both"] = setting(
            "student", help="on a perturbed view, whose input delta moves (options A, B and C)"
        )
        w_min: float = setting(
            5.0, ge=0.0, le=1000.0, help="smallest strength w of cond + w (cond - uncond)"
        )
        w_max: float = setting(15.0, ge=0.0, le=1000.0, help="largest; equal to w_min: always that")
        distance: Literal["l2", "pseudo-huber"] = setting(
            "l2", help="mean square, or mean pseudo-Huber, of the entries' differences"
        )
        huber_c: float = setting(
            0.001, gt=0.0, applies=("distance", ("pseudo-huber",)),
            help="where pseudo-huber turns from square to absolute value",
        )  # fmt: skip

        def __attrs_post_init__(self) -> None:
            """Check the range."""
            if self.w_min > self.w_max:
                message = f"w_max: {self.w_max} must be at least w_min = {self.w_min}"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        grid = _grid(build)
        _check(settings, build)
        base, function, role = base_view(settings, build), grid.function, settings.role
        guidance = Guidance(settings.w_min, settings.w_max)
        told = guidance if _told(settings, build) else None
        both = settings.moves == "both"
        earlier = GuidedEarlier(settings.view if both else base, grid, settings.teacher, guidance)
        seen = base if settings.moves == "target" else settings.view
        self.hat = GuidedHat(role, seen, function, told)
        self.goal: Query[Tensor] = GuidedTarget(settings.target, earlier, function, told)
        if settings.moves == "target":
            self.goal = MovedGuidedTarget(settings.target, settings.view, earlier, function, told)
        self.needs = (self.hat, self.goal)
        huber = partial(pseudo_huber_mean, c=settings.huber_c)
        self.distance = l2 if settings.distance == "l2" else huber

    def forward(self, step: Step) -> Tensor:
        """The distance of each sample [B]."""
        return self.distance(step.get(self.hat), step.get(self.goal))


def _grid(build: Build) -> LatentGrid:
    """The grid that the recipe's times are drawn from.

    Raises:
        RecipeError: R10 if they are drawn otherwise.
    """
    if not isinstance(build.times, LatentGrid):
        message = "the recipe draws training times of which none lies k before another"
        fix = 'write density = { sampler = { use = "latent-grid" } } in [schedule]'
        refuse(build, "use", message, fix)
    assert isinstance(build.times, LatentGrid)
    return build.times


def _check(keys: LatentConsistency.Settings, build: Build) -> None:
    """Refuse roles that cannot play their part.

    Raises:
        RecipeError: R10.
    """
    require_denoiser(build, "role", keys.role)
    require_denoiser(build, "target", keys.target)
    require_average(build, "target", keys.target, of=keys.role)
    require_teacher(build, "teacher", keys.teacher)
    if build.data is not None and not build.data.classes:
        message = "the data have no labels, and guidance is the difference that labels make"
        refuse(build, "use", message, "train on data with labels, or distil without guidance")
    teacher = build.models.get(keys.teacher)
    if teacher is not None and not teacher.classes:
        message = f"model {keys.teacher!r} ignores labels: nothing guides it"
        fix = f"write conditional = true in models.{keys.teacher}, and give it such weights"
        refuse(build, "teacher", message, fix)


def _told(keys: LatentConsistency.Settings, build: Build) -> bool:
    """Whether the student is told the strength.

    Raises:
        RecipeError: R10 if it has to be and cannot.
    """
    model = build.models.get(keys.role)
    if model is None or model.guided:
        return True
    if keys.w_min < keys.w_max:
        message = f"w is drawn from {keys.w_min:g} to {keys.w_max:g}, and model {keys.role!r} "
        fix = f"write guided = true in models.{keys.role}, or w_max = {keys.w_min:g} here"
        refuse(build, "role", f"{message}cannot be told which it is", fix)
    return False
