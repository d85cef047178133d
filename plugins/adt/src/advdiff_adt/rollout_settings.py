"""The keys of a rollout, which the terms `adversarial` and `reward` have in common."""

from __future__ import annotations

from typing import Literal

import attrs

from advdiff_adt.rules import LINEAR_RULES
from advdiff_core import Build, Sampler, Spec
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting

__all__ = ["RolloutSettings", "check_rollout"]


#: As `settings`, without slots, so that a term can have these keys and those of a judge.
shared_settings = attrs.frozen(kw_only=True, slots=False)


@shared_settings
class RolloutSettings:
    """Keys of a rollout."""

    role: str = setting("student", ref="role", help="denoiser that is run and trained")
    sampler: Spec = setting(kind="sampler", help="sampler whose path is run, with its steps")
    start: Literal["uniform", "fixed", "curriculum"] = setting(
        "uniform",
        help="where on the path: anywhere, at one step, or anywhere on a part that grows backwards",
    )
    first: int = setting(
        0, ge=0, unit="steps", applies=("start", ("fixed",)),
        help="step that a fixed start begins with; 0 is t = T",
    )  # fmt: skip
    curriculum: int = setting(
        100_000, gt=0, unit="images", applies=("start", ("curriculum",)),
        help="images after which the curriculum covers the path",
    )  # fmt: skip
    gradient: Literal["adt", "drtune", "full", "last-k", "none"] = setting(
        "adt",
        help="what a backward sees of the path: states at slope 1, at the sampler's slopes, all of "
        "it, all of its last K steps, or its last step",
    )
    gradient_steps: int = setting(
        3, ge=1, unit="steps", applies=("gradient", ("adt", "drtune", "last-k")),
        help="K, the steps whose networks are trained; all if fewer are run",
    )  # fmt: skip
    choice: Literal["random", "spaced"] = setting(
        "random", applies=("gradient", LINEAR_RULES),
        help="which K: at random, or evenly spaced with a random offset",
    )  # fmt: skip
    truncation: Literal["fixed", "random"] = setting(
        "fixed", applies=("gradient", ("last-k",)), help="the last K, or a random number up to K"
    )
    early_stop: float = setting(
        0.0, ge=0.0, lt=1.0,
        help="share of the path, at its end, where a run may stop: the rest is taken in one step",
    )  # fmt: skip
    guidance: float = setting(
        0.0, ge=0.0, help="w of cond + w (cond - uncond) along the path; 0 is off"
    )
    recompute: bool | None = setting(
        None, help="run trained evaluations again in the backward; left out: where all are trained"
    )
    decoder: str = setting(
        "", ref="role", help="frozen network that turns latents into images; none for pixels"
    )


def check_rollout(keys: RolloutSettings, build: Build, sampler: Sampler) -> None:
    """Refuse keys that do not fit the recipe.

    Raises:
        RecipeError: R10, naming the key and the mend.
    """
    _check_path(keys, build, len(sampler.grid()) - 1)
    if keys.gradient in LINEAR_RULES and not sampler.linear:
        message = (
            f"gradient = {keys.gradient!r} needs steps that are linear in states and predictions; "
            f"those of {keys.sampler.use!r} as it is set are not"
        )
        fix = 'set clip_x0 = false, take ddim, ddpm, euler, heun or dpm++2m, or gradient = "full"'
        refuse(build, "sampler", message, fix)
    _check_models(keys, build)


def _check_path(keys: RolloutSettings, build: Build, steps: int) -> None:
    if keys.start == "fixed" and keys.first >= steps:
        message = f"step {keys.first} of a path of {steps} steps is t_s = 0, where no step is left"
        refuse(build, "first", message, f"start with a step from 0 to {steps - 1}")
    run = steps - keys.first if keys.start == "fixed" else steps
    counted = keys.gradient not in ("full", "none")
    if counted and keys.gradient_steps > run:
        message = f"{keys.gradient_steps} trained steps of a path that runs {run}"
        refuse(build, "gradient_steps", message, f"write {run} or fewer, or more steps")


def _check_models(keys: RolloutSettings, build: Build) -> None:
    model = build.models.get(keys.role)
    if model is not None and model.parametrization == "none":
        fix = "name a backbone with a parametrization"
        refuse(build, "role", f"model {keys.role!r} is no denoiser", fix)
    if keys.guidance and model is not None and not (model.guided or model.classes):
        message = f"{keys.guidance:g}, but model {keys.role!r} ignores labels"
        refuse(build, "guidance", message, "set it to 0, or give that model conditional = true")
    decoder = build.models.get(keys.decoder)
    if decoder is None:
        return
    if decoder.kind != "backbone" or decoder.parametrization != "none" or not decoder.frozen:
        message = f"model {keys.decoder!r} is no frozen network from latents to images"
        refuse(build, "decoder", message, 'use = "vae-decoder", with frozen = true')
