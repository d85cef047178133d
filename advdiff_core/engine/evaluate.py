"""Metrics of a trained run, each stored with its protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from attrs import define, field, frozen

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.distributed import World
from advdiff_core.engine.evaluation import RunEvaluation
from advdiff_core.engine.generate import SampleSet, generate
from advdiff_core.errors import NumericsError
from advdiff_core.interfaces.metric import Metric

__all__ = ["evaluate", "metrics", "spread"]


def evaluate(
    experiment: Experiment,
    folder: Path,
    nimg: int,
    *,
    built: Mapping[str, Metric] | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Compute every metric of the recipe, on samples where it needs them.

    Args:
        experiment: The run.
        folder: Where metrics may write files.
        nimg: Images seen by the weights.
        built: Its metrics, from `metrics`; built anew if None.
        world: Processes that share the work, each of which calls this: a sample is made by one of
            them, and a metric computed by one, on all samples. Alone, if None.

    Returns:
        `metrics` (name -> number, the mean over ranges of seeds), `repeats` (name -> numbers of
        each range, if there are several, and their spread), `owners` (name -> metric), `protocols`
        (metric -> protocol with how the samples were made) and `nimg`.

    Raises:
        NumericsError: If a sample is not finite.
    """
    built = metrics(experiment) if built is None else built
    world = world or World()
    measuring = _Measuring(
        experiment=experiment, world=world, views=_views(experiment, folder),
        found={name: _Found(metric) for name, metric in built.items()},
    )  # fmt: skip
    measuring.without_samples()
    ranges = experiment.recipe.evaluate.repeats if measuring.sampling else 0
    for repeat in range(ranges):
        measuring.on(_samples(experiment, repeat, world))
    measuring.exchange()
    return {**_merged(measuring.found), "nimg": nimg}


@frozen(kw_only=True, eq=False)
class _Measuring:
    """The metrics of one evaluation, dealt to the processes.

    Attributes:
        experiment: The run.
        world: The processes.
        views: What metrics read, by `Metric.decoded`.
        found: What was found, by metric.
    """

    experiment: Experiment
    world: World
    views: Mapping[bool, RunEvaluation]
    found: Mapping[str, _Found]

    @property
    def sampling(self) -> list[str]:
        """Metrics that read samples."""
        return [name for name, one in self.found.items() if one.metric.needs_samples]

    @property
    def _mine(self) -> list[str]:
        """Metrics of this process."""
        return list(self.found)[self.world.rank :: self.world.size]

    def without_samples(self) -> None:
        """Compute the metrics that read none."""
        self._together([n for n in self._mine if n not in self.sampling], _common(self.experiment))

    def on(self, sampled: SampleSet) -> None:
        """Compute the others on one range of seeds."""
        for decoded in {self.found[name].metric.decoded for name in self.sampling}:
            self.views[decoded].samples, self.views[decoded].seeds = sampled.x0, sampled.seeds
        told = _protocol(self.experiment, sampled, len(self.views[False].reference))
        self._together([name for name in self._mine if name in self.sampling], told)

    def _together(self, names: Sequence[str], told: Mapping[str, object]) -> None:
        def compute() -> None:
            for name in names:
                one = self.found[name]
                one.add(name, self.views[one.metric.decoded])
                one.measured(told)

        self.world.ranks.agree(compute)

    def exchange(self) -> None:
        """Tell all processes what each found."""
        if self.world.size == 1:
            return
        mine: dict[str, Any] = {
            name: [self.found[name].numbers, self.found[name].protocol] for name in self._mine
        }
        for part in self.world.ranks.agree(lambda: mine):
            for name, (numbers, protocol) in part.items():
                self.found[name].numbers, self.found[name].protocol = numbers, protocol


def _views(experiment: Experiment, folder: Path) -> dict[bool, RunEvaluation]:
    """What metrics read, by `Metric.decoded`: two only where samples are no pictures."""
    plain = RunEvaluation(experiment, folder)
    if experiment.source.pictures is experiment.source.info:
        return {False: plain, True: plain}
    return {False: plain, True: RunEvaluation(experiment, folder, decoded=True)}


@define(eq=False)
class _Found:
    """What one metric found so far: its numbers per range of seeds, its notes, its protocol."""

    metric: Metric
    numbers: dict[str, list[float]] = field(factory=dict)
    protocol: dict[str, object] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.protocol = dict(self.metric.protocol())

    def add(self, name: str, evaluation: RunEvaluation) -> None:
        """Compute once more; the numbers of a metric named `use#2` carry its place."""
        evaluation.notes = []
        suffix = name.partition("#")[2]
        for key, value in self.metric.compute(evaluation).items():
            where = f"{key}#{suffix}" if suffix else key
            self.numbers.setdefault(where, []).append(float(value))
        told = cast("list[str]", self.protocol.get("notes", []))
        notes = [*told, *(note for note in evaluation.notes if note not in told)]
        if notes:
            self.protocol["notes"] = notes

    def measured(self, told: Mapping[str, object]) -> None:
        """Add to the protocol what the metric itself did not say."""
        self.protocol.update({key: v for key, v in told.items() if key not in self.protocol})


def _merged(found: Mapping[str, _Found]) -> dict[str, Any]:
    merged: dict[str, Any] = {"metrics": {}, "repeats": {}, "owners": {}, "protocols": {}}
    for name, one in found.items():
        merged["protocols"][name] = one.protocol
        for key, values in one.numbers.items():
            merged["owners"][key] = name
            merged["metrics"][key] = math.fsum(values) / len(values)
            if len(values) > 1:
                merged["repeats"][key] = spread(values)
    return merged


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The numbers of several ranges of seeds: each, the least, their mean, the largest, max - min.

    Args:
        values: One number per range.
    """
    low, high = min(values), max(values)
    mean = math.fsum(values) / len(values)
    return {"values": list(values), "min": low, "mean": mean, "max": high, "spread": high - low}


def metrics(experiment: Experiment) -> dict[str, Metric]:
    """The recipe's metrics, built: `use`, or `use#2` for the second one of that name.

    Raises:
        AdvdiffError: If one cannot be built; asked before the training, not after it.
    """
    found: dict[str, Metric] = {}
    for spec in experiment.recipe.evaluate.metrics:
        count = 1 + sum(name.partition("#")[0] == spec.use for name in found)
        name = spec.use if count == 1 else f"{spec.use}#{count}"
        shown = experiment.source.pictures if spec.component.decoded else experiment.source.info
        found[name] = cast("Metric", experiment.make(spec, data=shown))
    return found


def _samples(experiment: Experiment, repeat: int, world: World) -> SampleSet:
    settings = experiment.recipe.evaluate
    first = settings.seed + repeat * settings.num
    seeds = range(first, first + settings.num)
    sampled = generate(experiment, seeds, batch=settings.batch, world=world)
    bad = ~sampled.x0.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        first = seeds[int(bad.nonzero()[0])]
        message = f"{int(bad.sum())} of {len(bad)} samples are not finite, first seed {first}"
        raise NumericsError(
            message, code="E22", where="evaluate", fix="train longer or with a lower rate"
        )
    return sampled


def _protocol(experiment: Experiment, sampled: SampleSet, reference: int) -> dict[str, object]:
    settings = experiment.recipe.evaluate
    many = {
        "repeats": settings.repeats,
        "value": f"mean over {settings.repeats} disjoint ranges of seeds",
    }
    return {
        "samples": len(sampled.seeds),
        "reference": reference,
        "seeds": f"{settings.seed}-{settings.seed + settings.repeats * settings.num - 1}",
        **(many if settings.repeats > 1 else {}),
        "sampler": sampled.sampler["use"],
        "nfe": sampled.nfe,
        **_common(experiment),
    }


def _common(experiment: Experiment) -> dict[str, object]:
    info = experiment.source.info
    domain = info.domain
    known = domain is not None and not math.isinf(domain.low)
    return {
        "shape": list(info.shape),
        "domain": [domain.low, domain.high] if domain is not None and known else None,
    }
