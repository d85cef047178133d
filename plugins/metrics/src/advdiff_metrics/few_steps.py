"""Quality of samples against the number of network evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from attrs import fields_dict

from advdiff_core import Build, Evaluation, Metric, Spec
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.hooks.files import write_file
from advdiff_core.interfaces.quality import judged, quality_of, sampler_of
from advdiff_core.settings import setting, settings

__all__ = ["FewSteps"]


class FewSteps(Metric):
    """Another metric at several numbers of sampling steps: the curve of quality against NFE.

    `few_steps_<number>_<steps>`: what the metric finds of samples made in so many steps, from the
    same seeds; which way is better is the metric's. With `samplers` there is a curve for each,
    `few_steps_<number>_<label>_<steps>`. `few-steps-<metric>.csv` and `.png` hold the curves over
    network evaluations per sample, `.md` a table with a column for each; files of the metric go to
    the folder beside them.
    """

    @settings
    class Settings:
        """Keys of `use = "few-steps"`."""

        metric: Spec = setting(kind="metric", help="what judges the samples")
        numbers: tuple[str, ...] = setting((), help="numbers of it that are kept; empty: the first")
        steps: tuple[int, ...] = setting(
            (10, 20, 50, 100), ge=1, help="numbers of steps", unit="steps"
        )
        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        samplers: tuple[Spec, ...] = setting(
            (), kind="sampler", help="several samplers instead, a curve each"
        )
        labels: tuple[str, ...] = setting(
            (), help="what `samplers` are called in numbers; made from their names if left out"
        )
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")

        def __attrs_post_init__(self) -> None:
            """Refuse a curve without points, and curves that cannot be told apart.

            Raises:
                ValueError: If there are no steps, or some twice; if samplers are named in two
                    keys; if there are not as many labels as samplers, or some twice.
            """
            if not self.steps or len(set(self.steps)) < len(self.steps):
                message = f"steps: found {list(self.steps)}, wanted one or more, each once"
                raise ValueError(message)
            if self.samplers and self.sampler is not None:
                message = "samplers: found beside sampler, wanted one of the two"
                raise ValueError(message)
            unfit = self.labels and len(self.labels) != len(self.samplers)
            if unfit or len({slug(label) for label in self.labels}) < len(self.labels):
                message = (
                    f"labels: found {list(self.labels)}, wanted one for each of "
                    f"{len(self.samplers)} samplers, each once"
                )
                raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.quality = quality_of(build, settings.metric)

    def protocol(self) -> Mapping[str, object]:
        """The other metric's protocol, samplers and steps."""
        made = self.settings
        return {
            "metric": {"use": made.metric.use, **self.quality.protocol()},
            **self._told(),
            "steps": list(made.steps),
            "samples of each": made.num or "all seeds",
        }

    def _told(self) -> dict[str, object]:
        made = self.settings
        if made.samplers:
            named = {one.label: told(one.sampler) for one in self._curves() if one.sampler}
            return {"samplers of the curves": named}
        return {"sampler of the curve": made.sampler.use if made.sampler else "the run's"}

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The other metric's numbers by name, sampler and steps."""
        made = self.settings
        folder = f"few-steps-{slug(made.metric.use)}"
        points = [
            _Point(curve, steps, nfe, name, value)
            for curve in self._curves()
            for steps in made.steps
            for nfe, found in [self._judged(evaluation, curve, steps, folder)]
            for name, value in found.items()
        ]
        self._write(evaluation, folder, points)
        return {point.number: point.value for point in points}

    def _curves(self) -> Iterator[_Curve]:
        made = self.settings
        if not made.samplers:
            yield _Curve("", made.sampler)
            return
        labels = distinct(made.labels or ["-".join(uses(spec)) for spec in made.samplers])
        for label, spec in zip(labels, made.samplers, strict=True):
            yield _Curve(label, spec)

    def _judged(
        self, evaluation: Evaluation, curve: _Curve, steps: int, folder: str
    ) -> tuple[int, dict[str, float]]:
        """Network evaluations per sample, and the metric's numbers."""
        made = self.settings
        sampler = sampler_of(self.build, evaluation, curve.sampler, steps)
        found = evaluation.generate(sampler, num=made.num)
        place = f"{curve.label}-{steps}" if curve.label else str(steps)
        told = evaluation.with_samples(found.x0, f"{folder}/{place}")
        return found.nfe, judged(self.quality, told, made.numbers, self.build.path)

    def _write(self, evaluation: Evaluation, folder: str, points: list[_Point]) -> None:
        curves: dict[str, list[tuple[float, float]]] = {}
        for point in points:
            curves.setdefault(point.line, []).append((float(point.nfe), point.value))
        path, use = evaluation.folder / folder, self.settings.metric.use
        write_curves(path, "NFE", curves, title=use)
        write_file(path.with_name(f"{folder}.md"), table("NFE", curves))


class _Curve(NamedTuple):
    """A curve.

    Attributes:
        label: What tells it from the others; "" for the only one.
        sampler: Its sampler; None for the run's.
    """

    label: str
    sampler: Spec | None


class _Point(NamedTuple):
    """A point of a curve: steps, network evaluations, name of the metric's number, its value."""

    curve: _Curve
    steps: int
    nfe: int
    name: str
    value: float

    @property
    def number(self) -> str:
        """What the number is called."""
        label = f"_{self.curve.label}" if self.curve.label else ""
        return f"few_steps_{self.name}{label}_{self.steps}"

    @property
    def line(self) -> str:
        """What its curve is called."""
        return f"{self.name}, {self.curve.label}" if self.curve.label else self.name


def uses(spec: Spec | None) -> list[str]:
    """Names of a sampler and of those that it wraps, from outside to inside."""
    if spec is None:
        return []
    inner = getattr(spec.settings, "sampler", None)
    return [spec.use, *(uses(inner) if isinstance(inner, Spec) else [])]


def told(spec: Spec) -> dict[str, object]:
    """A sampler's name and settings, those of what it wraps included; `steps` is the curve's."""
    keys = {name: getattr(spec.settings, name) for name in fields_dict(type(spec.settings))}
    shown = {name: told(v) if isinstance(v, Spec) else v for name, v in keys.items()}
    return {"use": spec.use, **{name: v for name, v in shown.items() if name != "steps"}}


def distinct(names: Sequence[str]) -> list[str]:
    """The names as parts of files' names, with `-2`, `-3` ... after those that are taken."""
    found: list[str] = []
    for name in map(slug, names):
        tries = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        found.append(next(one for one in tries if one not in found))
    return found


def table(head: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Curves as a Markdown table: a row for each place, a column for each curve."""
    places = sorted({place for line in curves.values() for place, _ in line})
    known = {name: dict(line) for name, line in curves.items()}
    rows = [[head, *curves], ["---:"] * (1 + len(curves))]
    rows += [
        [f"{place:g}", *(_cell(line.get(place)) for line in known.values())] for place in places
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
