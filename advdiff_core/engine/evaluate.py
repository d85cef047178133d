"""Metrics of a trained run, each stored with its protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from attrs import define, field

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.evaluation import RunEvaluation
from advdiff_core.engine.generate import SampleSet, generate
from advdiff_core.errors import NumericsError
from advdiff_core.interfaces.metric import Metric

__all__ = ["evaluate", "metrics", "spread"]


def evaluate(
    experiment: Experiment, folder: Path, nimg: int, *, built: Mapping[str, Metric] | None = None
) -> dict[str, Any]:
    """Compute every metric of the recipe, on samples where it needs them.

    Args:
        experiment: The run.
        folder: Where metrics may write files.
        nimg: Images seen by the weights.
        built: Its metrics, from `metrics`; built anew if None.

    Returns:
        `metrics` (name -> number, the mean over ranges of seeds), `repeats` (name -> numbers of
        each range, if there are several, and their spread), `owners` (name -> metric), `protocols`
        (metric -> protocol with how the samples were made) and `nimg`.

    Raises:
        NumericsError: If a sample is not finite.
    """
    built = metrics(experiment) if built is None else built
    views = _views(experiment, folder)
    found = {name: _Found(metric) for name, metric in built.items()}
    for name, one in found.items():
        if not one.metric.needs_samples:
            one.add(name, views[one.metric.decoded])
            one.measured(_common(experiment))
    sampling = {name: one for name, one in found.items() if one.metric.needs_samples}
    ranges = experiment.recipe.evaluate.repeats if sampling else 0
    for repeat in range(ranges):
        sampled = _samples(experiment, repeat)
        for decoded in {one.metric.decoded for one in sampling.values()}:
            views[decoded].samples, views[decoded].seeds = sampled.x0, sampled.seeds
        for name, one in sampling.items():
            one.add(name, views[one.metric.decoded])
            one.measured(_protocol(experiment, sampled, len(views[False].reference)))
    return {**_merged(found), "nimg": nimg}


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


def _samples(experiment: Experiment, repeat: int) -> SampleSet:
    settings = experiment.recipe.evaluate
    first = settings.seed + repeat * settings.num
    seeds = range(first, first + settings.num)
    sampled = generate(experiment, seeds, batch=settings.batch)
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
