"""Quality of samples against the number of network evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import ClassVar, cast

from advdiff_core import Build, Evaluation, Fault, Metric, RecipeError, Spec
from advdiff_core.settings import setting, settings
from advdiff_robustadv.curves import slug, write_curves
from advdiff_robustadv.metrics_smoothness import sampler_of
from advdiff_robustadv.rays import SOURCE

__all__ = ["FewSteps", "judged", "quality_of"]


class FewSteps(Metric):
    """Another metric at several numbers of sampling steps: the curve of quality against NFE.

    `few_steps_<number>_<steps>`: what the metric finds of samples made in so many steps, from the
    same seeds; which way is better is the metric's. `few-steps-<metric>.csv` and `.png` hold the
    curves over network evaluations per sample; files of the metric go to the folder beside them.
    FOUND: the paper's models keep their quality at fewer steps.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings:
        """Keys of `use = "few-steps"`."""

        metric: Spec = setting(kind="metric", help="what judges the samples")
        numbers: tuple[str, ...] = setting((), help="numbers of it that are kept; empty: the first")
        steps: tuple[int, ...] = setting(
            (10, 20, 50, 100), ge=1, help="numbers of steps", unit="steps"
        )
        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")

        def __attrs_post_init__(self) -> None:
            """Refuse a curve without points.

            Raises:
                ValueError: If there are no steps, or some twice.
            """
            if not self.steps or len(set(self.steps)) < len(self.steps):
                message = f"steps: found {list(self.steps)}, wanted one or more, each once"
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.quality = quality_of(build, settings.metric)

    def protocol(self) -> Mapping[str, object]:
        """The other metric's protocol, sampler and steps."""
        made = self.settings
        return {
            "metric": {"use": made.metric.use, **self.quality.protocol()},
            "sampler of the curve": made.sampler.use if made.sampler else "the run's",
            "steps": list(made.steps),
            "samples of each": made.num or "all seeds",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The other metric's numbers by name and steps."""
        made, numbers = self.settings, {}
        name_of_files = f"few-steps-{slug(made.metric.use)}"
        curves: dict[str, list[tuple[float, float]]] = {}
        for steps in made.steps:
            sampler = sampler_of(self.build, evaluation, made.sampler, steps)
            found = evaluation.generate(sampler, num=made.num)
            told = evaluation.with_samples(found.x0, f"{name_of_files}/{steps}")
            for name, value in judged(self.quality, told, made.numbers, self.build.path).items():
                numbers[f"few_steps_{name}_{steps}"] = value
                curves.setdefault(name, []).append((float(found.nfe), value))
        write_curves(evaluation.folder / name_of_files, "NFE", curves, title=made.metric.use)
        return numbers


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
