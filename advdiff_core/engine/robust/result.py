"""The numbers of an evaluation: exact counts, intervals, costs, and what must be said beside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from advdiff_core.engine.robust.evidence import Flag
from advdiff_core.engine.robust.findings import Findings
from advdiff_core.engine.robust.job import Entry, Stage
from advdiff_core.math.statistics import wilson

__all__ = [
    "CurvePoint", "Mean", "RobustReport", "Share", "StageFacts", "curve_of", "example_rows",
    "mean_of", "share_of", "stage_facts",
]  # fmt: skip

#: Half the width of a 95 % interval of a mean, in standard errors.
Z = 1.959963984540054


@frozen(kw_only=True)
class Share:
    """Correctly classified samples: `hits` of `count`, and the Wilson 95 % interval."""

    hits: int
    count: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.count


@frozen(kw_only=True)
class Mean:
    """Mean objective of the `count` samples with finite outputs, and its 95 % interval."""

    value: float
    count: int
    low: float
    high: float


Number = Share | Mean


@frozen(kw_only=True)
class CurvePoint:
    """What is left at one radius.

    Attributes:
        case: What was attacked: "", or a noise level.
        eps: Radius, on the [0, 1] scale.
        attacks: Each attack alone, by name.
        worst: The worst of all attacks, per sample.
    """

    case: str
    eps: float
    attacks: Mapping[str, Number]
    worst: Number


@frozen(kw_only=True)
class StageFacts:
    """What one attack, or member of one, did at one radius.

    Attributes:
        name: For example "autoattack/square".
        case: What was attacked.
        eps: Radius; None for a search that answers for all.
        tested: Samples that were left for it.
        broken: Those it broke.
        max_norm: Largest norm it returned, in units of eps, by the independent check.
        silent: Samples it saw broken inside the budget and returned unbroken.
        not_finite: Returned inputs whose outputs are not finite: counted as broken.
        forwards: Forwards of single samples.
        gradients: Gradients of single samples towards the input.
        seconds: Wall time.
    """

    name: str
    case: str
    eps: float | None
    tested: int
    broken: int
    max_norm: float
    silent: int
    not_finite: int
    forwards: int
    gradients: int
    seconds: float


@frozen(kw_only=True)
class RobustReport:
    """The result of an evaluation under attack.

    Attributes:
        folder: Where its records are.
        config: What was evaluated: weights, data, attacks, radii, seed; the same config, the same
            numbers.
        clean: Without attack, by case.
        curve: By case and radius, ascending.
        stages: What each attack did.
        notes: What must be said beside the numbers.
        flags: Reasons to doubt them.
    """

    folder: Path
    config: Mapping[str, Any]
    clean: Mapping[str, Number]
    curve: tuple[CurvePoint, ...]
    stages: tuple[StageFacts, ...]
    notes: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of all attacks, over all processes that worked on it."""
        return math.fsum(stage.seconds for stage in self.stages)

    def as_json(self) -> dict[str, Any]:
        """What `report.json` holds. Times are under `time` alone: the rest repeats bit for bit."""
        stages = [asdict(one) for one in self.stages]
        times = [one.pop("seconds") for one in stages]
        return {
            "config": dict(self.config),
            "clean": {case: asdict(one) for case, one in self.clean.items()},
            "curve": [asdict(point) for point in self.curve],
            "stages": stages,
            "notes": list(self.notes),
            "flags": [asdict(flag) for flag in self.flags],
            "time": {"seconds": self.seconds, "stages": times},
        }

    @classmethod
    def from_json(cls, folder: Path, tables: Mapping[str, Any]) -> RobustReport:
        """The report that `as_json` gave.

        Args:
            folder: Where it was stored.
            tables: Content of `report.json`.
        """
        times = tables["time"]["stages"]
        return cls(
            folder=folder,
            config=tables["config"],
            clean={case: _number(one) for case, one in tables["clean"].items()},
            curve=tuple(_point(one) for one in tables["curve"]),
            stages=tuple(
                StageFacts(**one, seconds=seconds)
                for one, seconds in zip(tables["stages"], times, strict=True)
            ),
            notes=tuple(tables["notes"]),
            flags=tuple(Flag(**one) for one in tables["flags"]),
        )


def _number(table: Mapping[str, Any]) -> Number:
    return Share(**table) if "hits" in table else Mean(**table)


def _point(table: Mapping[str, Any]) -> CurvePoint:
    attacks = {name: _number(one) for name, one in table["attacks"].items()}
    return CurvePoint(
        case=table["case"], eps=table["eps"], attacks=attacks, worst=_number(table["worst"])
    )


def share_of(hits: int, count: int) -> Share:
    """A share with its Wilson 95 % interval."""
    low, high = wilson(hits, count)
    return Share(hits=hits, count=count, low=low, high=high)


def mean_of(values: Iterable[float | None]) -> Mean:
    """A mean of finite values with its normal 95 % interval; None stands for what is not finite."""
    finite = [one for one in values if one is not None]
    if not finite:
        return Mean(value=0.0, count=0, low=0.0, high=0.0)
    mean = math.fsum(finite) / len(finite)
    spread = math.fsum((one - mean) ** 2 for one in finite) / max(len(finite) - 1, 1)
    half = Z * math.sqrt(spread / len(finite))
    return Mean(value=mean, count=len(finite), low=mean - half, high=mean + half)


def _summed(findings: Findings, scores: Sequence[float | None]) -> Number:
    if findings.verdicts:
        return share_of(sum(score == 0 for score in scores), len(scores))
    return mean_of(scores)


def clean_of(findings: Findings) -> dict[str, Number]:
    """Without attack, by case."""
    return {case: _summed(findings, list(found.values())) for case, found in findings.clean.items()}


def curve_of(
    findings: Findings, entries: Sequence[Entry], radii: Sequence[float]
) -> tuple[CurvePoint, ...]:
    """What is left by case and radius, of each attack alone and of all together."""
    points = []
    for case, found in findings.clean.items():
        for eps in radii:

            def left(chosen: Sequence[int], case: str = case, eps: float = eps) -> Number:
                scores = [findings.worst(case, chosen, one, eps)[0] for one in findings.clean[case]]
                return _summed(findings, scores)

            attacks = {entry.name: left([place]) for place, entry in enumerate(entries)}
            worst = left(range(len(entries)))
            points.append(CurvePoint(case=case, eps=eps, attacks=attacks, worst=worst))
        assert found, "every case has samples"
    return tuple(points)


def stage_facts(findings: Findings, stages: Sequence[Stage]) -> tuple[StageFacts, ...]:
    """What each stage did."""
    return tuple(_stage(findings, stage) for stage in stages)


def _stage(findings: Findings, stage: Stage) -> StageFacts:
    rows = findings.rows.get(stage.number, [])
    limit = math.inf if stage.eps is None else findings.limit(stage.eps)
    broken = sum(
        score is not None and score > 0 and norm <= limit
        for row in rows
        for norm, score in zip(row["norm"], row["score"], strict=True)
    )
    return StageFacts(
        name=stage.name,
        case=stage.case,
        eps=stage.eps,
        tested=sum(len(row["ids"]) for row in rows),
        broken=broken if findings.verdicts else 0,
        max_norm=max((row["max_norm"] for row in rows), default=0.0),
        silent=sum(row["silent"] for row in rows),
        not_finite=sum(row["not_finite"] for row in rows),
        forwards=sum(row["forwards"] for row in rows),
        gradients=sum(row["gradients"] for row in rows),
        seconds=math.fsum(row["seconds"] for row in rows),
    )


def example_rows(
    findings: Findings, stages: Sequence[Stage], radii: Sequence[float], entries: int
) -> Iterable[dict[str, Any]]:
    """A line per sample and case: label, clean verdict, and the worst found at each radius."""
    names = {stage.number: stage.name for stage in stages}
    for case, found in findings.clean.items():
        for one, score in found.items():
            row: dict[str, Any] = {"id": one, "label": findings.labels.get(one)}
            if case:
                row["case"] = case
            row["clean"] = _told(findings, score)
            row["eps"] = [_at(findings, case, one, eps, range(entries), names) for eps in radii]
            yield row


def _at(  # noqa: PLR0913 - one sample at one radius.
    findings: Findings,
    case: str,
    one: int,
    eps: float,
    entries: Sequence[int],
    names: Mapping[int, str],
) -> dict[str, Any]:
    score, hit = findings.worst(case, entries, one, eps)
    return {
        "radius": eps,
        "worst": _told(findings, score),
        "attack": None if hit is None else names[hit.stage],
        "norm": None if hit is None else hit.norm,
    }


def _told(findings: Findings, score: float | None) -> Any:
    if not findings.verdicts:
        return score
    return "right" if score == 0 else "wrong"
