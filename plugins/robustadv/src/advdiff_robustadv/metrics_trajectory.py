"""Quality of samples against the strength of an attack on the path of sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from attrs import evolve

from advdiff_core import Build, Evaluation, Metric, Spec
from advdiff_core.hooks.curves import slug, write_curves
from advdiff_core.interfaces.quality import judged, quality_of, sampler_of
from advdiff_core.settings import setting, settings
from advdiff_robustadv.rays import SOURCE
from advdiff_robustadv.trajectory import AttackedSampler, TrajectorySettings

__all__ = ["TrajectoryAttack"]

Kind = Literal["pgd", "random", "gaussian"]


class _Point(NamedTuple):
    """A point of a curve.

    Attributes:
        curve: "radius" or "attacked": what varies along it.
        kind: Kind of attack.
        at: Its value.
        keys: The attack.
    """

    curve: str
    kind: str
    at: float
    keys: TrajectorySettings

    @property
    def name(self) -> str:
        """End of the number's name."""
        return f"{self.kind}_{'r' if self.curve == 'radius' else 'k'}{self.at:g}"


class TrajectoryAttack(Metric):
    """Another metric of samples made under attack: curves over radius and number of attacked steps.

    `trajectory_<number>_plain` without attack; `..._<kind>_r<radius>` with the radius varied, at
    `attacked` steps; `..._<kind>_k<steps>` with the number of attacked steps varied, at `radius`.
    Which way is better is the metric's. `trajectory-radius-<metric>.csv`,
    `trajectory-attacked-<metric>.csv` and pictures hold the curves. Samples are those of the same
    seeds and noise at every point. The attack is that of the sampler `attacked`.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings(TrajectorySettings):
        """Keys of `use = "trajectory-attack"`."""

        metric: Spec = setting(kind="metric", help="what judges the samples")
        numbers: tuple[str, ...] = setting((), help="numbers of it that are kept; empty: the first")
        radii: tuple[float, ...] = setting(
            (0.25, 0.5, 1.0, 2.0), gt=0, help="radii of the first curve"
        )
        counts: tuple[int, ...] = setting(
            (), ge=1, help="numbers of attacked steps of the second curve", unit="steps"
        )
        controls: tuple[Kind, ...] = setting(
            ("gaussian",), help="kinds of attack beside `kind`, at every point"
        )
        sampler: Spec | None = setting(None, kind="sampler", help="sampler; the run's own if none")
        steps: int = setting(0, ge=0, help="steps of the sampler; 0: as it is set", unit="steps")
        num: int = setting(0, ge=0, help="the first so many seeds; 0: all", unit="images")

        def __attrs_post_init__(self) -> None:
            """Refuse a metric without curves, and points that come twice.

            Raises:
                ValueError: If there are no points, or one twice.
            """
            if not self.radii and not self.counts:
                message = "radii: found none, and no counts, wanted a curve"
                raise ValueError(message)
            for name, values in (("radii", self.radii), ("counts", self.counts)):
                if len(set(values)) < len(values):
                    message = f"{name}: found {list(values)}, wanted each once"
                    raise ValueError(message)

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.quality = quality_of(build, settings.metric)

    def protocol(self) -> Mapping[str, object]:
        """Attack, the other metric's protocol, sampler."""
        made = self.settings
        ray = {"omega": made.omega, "gamma": made.gamma} if made.law == "ray" else {}
        return {
            "metric": {"use": made.metric.use, **self.quality.protocol()},
            "attack": f"{made.attack_steps} ascent steps of {made.step_scale} radius on the "
            f"{made.objective}, best kept, random start",
            "law": made.law, **ray, "norm": made.norm, "unit": made.unit,
            "radius": made.radius, "attacked": made.attacked or "every step",
            "sampler of the curves": made.sampler.use if made.sampler else "the run's",
            "steps": made.steps or "of the sampler",
            "samples of each": made.num or "all seeds",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """The other metric's numbers by name and point."""
        plain = self._judged(evaluation, None)
        numbers = {f"trajectory_{name}_plain": value for name, value in plain.items()}
        curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for point in self._points():
            for name, value in self._judged(evaluation, point).items():
                numbers[f"trajectory_{name}_{point.name}"] = value
                start = [(0.0, plain[name])]
                line = curves.setdefault(point.curve, {})
                line.setdefault(f"{name}, {point.kind}", start).append((point.at, value))
        for curve, lines in curves.items():
            path = evaluation.folder / f"trajectory-{curve}-{slug(self.settings.metric.use)}"
            write_curves(path, curve, lines, title=f"{self.settings.metric.use} under attack")
        return numbers

    def _points(self) -> Iterator[_Point]:
        # mypy takes Settings for no attrs class.
        made: Any = self.settings
        for kind in dict.fromkeys((made.kind, *made.controls)):
            for radius in made.radii:
                yield _Point("radius", kind, radius, evolve(made, kind=kind, radius=radius))
            for count in made.counts:
                yield _Point("attacked", kind, count, evolve(made, kind=kind, attacked=count))

    def _judged(self, evaluation: Evaluation, point: _Point | None) -> dict[str, float]:
        made = self.settings
        sampler = sampler_of(self.build, evaluation, made.sampler, made.steps)
        if point is not None:
            sampler = AttackedSampler(sampler, point.keys, self.build)
        found = evaluation.generate(sampler, num=made.num)
        name = "plain" if point is None else point.name
        folder = f"trajectory-attack-{slug(made.metric.use)}/{name}"
        told = evaluation.with_samples(found.x0, folder)
        return judged(self.quality, told, made.numbers, self.build.path)
