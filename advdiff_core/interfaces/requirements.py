"""What components ask of the others, with one message for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.loss_term import LossTerm

if TYPE_CHECKING:
    from advdiff_core.interfaces.component import Build
    from advdiff_core.settings import Spec

__all__ = ["nested_term", "refuse", "require_noise", "require_noised"]

#: Times of a continuous schedule that are looked at before the run.
TIMES = 1001


def refuse(build: Build, key: str, message: str, fix: str) -> None:
    """Refuse a recipe whose parts do not fit.

    Args:
        build: What the component was told.
        key: Key of its table.
        message: What was found, and what was wanted.
        fix: The mend.

    Raises:
        RecipeError: Always, R10.
    """
    where = f"{build.path}.{key}" if build.path else key
    raise RecipeError([Fault(code="R10", key=where, message=message, fix=fix)])


def require_noise(build: Build) -> None:
    """Refuse a schedule without noise at a time that is trained, as targets divide by sigma.

    Looked at once, before the run, since a step never waits for the device.

    Raises:
        RecipeError: R10, naming the time.
    """
    if build.schedule is None:
        return
    u = torch.linspace(0.0, 1.0 - 1e-9, build.schedule.num_steps or TIMES, dtype=torch.float64)
    t = build.schedule.quantile(u).float()
    sigma = build.schedule.sigma(t)
    bad = ~((sigma > 0) & sigma.isfinite())
    if bool(bad.any()):
        first = int(bad.int().argmax())
        message = (
            f"sigma is {float(sigma[first]):g} at t = {float(t[first]):g}, a training time; the "
            f"noise that explains a moved input, delta / sigma, has no value there"
        )
        fix = "use a schedule, or a t_min of its, with sigma above 0 at every training time"
        raise RecipeError([Fault(code="R10", key="schedule", message=message, fix=fix)])


def require_noised(build: Build, base: str) -> None:
    """Refuse a view of images, which has no noise level, as what a perturbation moves.

    Args:
        build: What the perturbation was told.
        base: The view it moves.

    Raises:
        RecipeError: R10 if `base` is a view of images.
    """
    view = build.views.get(base)
    if view is None or view.root == "clean":
        return
    message = f"{base!r} is a view of images, which have no noise level"
    fix = 'write from = "clean", or a view made from it'
    key = f"{build.path.removesuffix('.perturb')}.from"
    raise RecipeError([Fault(code="R10", key=key, message=message, fix=fix)])


def nested_term(build: Build, spec: Spec, key: str = "term") -> LossTerm:
    """Build the loss term that a search makes grow.

    Args:
        build: What the perturbation was told.
        spec: The term.
        key: Key of the perturbation's table that names it.

    Raises:
        RecipeError: R10 if it has parameters, which nobody would train there.
    """
    term = build.nested(spec)
    assert isinstance(term, LossTerm), "discovery checks the kind"
    if any(True for _ in term.parameters()):
        message = f"{spec.use!r} has parameters, which nobody would train here"
        refuse(build, key, message, "attack a term without parameters")
    return term
