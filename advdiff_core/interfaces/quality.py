"""For metrics that run another metric, or another sampler: curves of quality over something."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, cast

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.interfaces.sampler import Sampler, with_steps

if TYPE_CHECKING:
    from advdiff_core.interfaces.component import Build
    from advdiff_core.settings import Spec

__all__ = ["judged", "quality_of", "sampler_of"]


def quality_of(build: Build, spec: Spec) -> Metric:
    """The metric of a key `metric`.

    Raises:
        RecipeError: R10 if its numbers do not depend on samples.
    """
    made = cast("Metric", build.nested(spec))
    if not made.needs_samples:
        message = f"{spec.use!r} looks at no samples: its number would be the same everywhere"
        fix = "name a metric of samples, such as frechet"
        raise RecipeError([Fault(code="R10", key=spec.path, message=message, fix=fix)])
    return made


def judged(
    quality: Metric, evaluation: Evaluation, names: tuple[str, ...], path: str
) -> dict[str, float]:
    """The chosen numbers of a metric, the first one if `names` is empty.

    Args:
        quality: The metric.
        evaluation: What it looks at.
        names: Numbers of it.
        path: Key of the metric that asks, for the message.

    Raises:
        RecipeError: R10 if it has no number of such a name.
    """
    found = quality.compute(evaluation)
    # Most metrics write nothing: leave no empty folders behind.
    with suppress(OSError):
        evaluation.folder.rmdir()
        evaluation.folder.parent.rmdir()
    for name in names:
        if name not in found:
            message = f"there is no number {name!r}; there are {', '.join(found)}"
            raise RecipeError([Fault(code="R10", key=f"{path}.numbers", message=message)])
    return {name: float(found[name]) for name in names or tuple(found)[:1]}


def sampler_of(build: Build, evaluation: Evaluation, spec: Spec | None, steps: int) -> Sampler:
    """The sampler of a key `sampler`, or the run's own, with other `steps` unless they are 0.

    Raises:
        RecipeError: R10 if the sampler has no key `steps`.
    """
    if spec is None:
        return evaluation.sampler(steps or None)
    made = build.nested(with_steps(spec, steps) if steps else spec)
    assert isinstance(made, Sampler), "the loader looks it up among samplers"
    return made
