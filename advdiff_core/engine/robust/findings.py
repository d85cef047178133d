"""What an evaluation has found so far: per sample, what broke it and how far it had to be moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from attrs import define, field

from advdiff_core.engine.robust.checker import slack
from advdiff_core.types import Norm

__all__ = ["CLEAN", "Findings", "Hit"]

#: Name of the stage that judges clean samples.
CLEAN = "clean"


class Hit(NamedTuple):
    """A checked adversarial input.

    Attributes:
        norm: Norm of its perturbation, in units of eps.
        score: 1 for a misclassified one, or a denoiser's objective.
        stage: Number of the stage that found it.
    """

    norm: float
    score: float
    stage: int


@define(kw_only=True, eq=False)
class Findings:
    """Everything found, made from the lines of the journal.

    A sample counts at a radius if any perturbation that was found is within it: so what breaks at
    one radius breaks at every larger one, and no number depends on the order of the radii.

    Attributes:
        norm: Norm of the ball.
        size: Numbers of one input.
        verdicts: Whether samples are right or wrong, or have an objective that grows.
        scale: Units of an input that 1 of eps is.
        clean: Score of each clean sample, by case and identity; None where not finite.
        labels: Label of each sample, by identity.
        hits: Hits by case, attack and identity, in the order of their stages.
        rows: Lines of the journal by stage number, the clean ones left out.
        not_finite: Clean samples whose outputs are not finite, by case.
    """

    norm: Norm
    size: int
    verdicts: bool
    scale: float
    clean: dict[str, dict[int, float | None]] = field(factory=dict)
    labels: dict[int, int] = field(factory=dict)
    hits: dict[tuple[str, int], dict[int, list[Hit]]] = field(factory=dict)
    rows: dict[int, list[Mapping[str, Any]]] = field(factory=dict)
    not_finite: dict[str, int] = field(factory=dict)

    def add_clean(self, case: str, row: Mapping[str, Any]) -> None:
        """Take in a line about clean samples."""
        ids, labels = row["ids"], row.get("labels") or []
        self.clean.setdefault(case, {}).update(zip(ids, row["score"], strict=True))
        self.labels.update(zip(ids, labels, strict=False))
        self.not_finite[case] = self.not_finite.get(case, 0) + row["not_finite"]

    def add(self, case: str, entry: int, stage: int, row: Mapping[str, Any]) -> None:
        """Take in a line about attacked samples."""
        self.rows.setdefault(stage, []).append(row)
        found = self.hits.setdefault((case, entry), {})
        for one, norm, score in zip(row["ids"], row["norm"], row["score"], strict=True):
            if score is not None and (score > 0 or not self.verdicts):
                found.setdefault(one, []).append(Hit(norm, score, stage))

    def limit(self, eps: float) -> float:
        """Largest norm that is within a radius, rounding included, in units of eps."""
        return eps + slack(eps * self.scale, self.norm, size=self.size) / self.scale

    def within(self, case: str, entry: int, one: int, eps: float) -> list[Hit]:
        """Hits of an attack on a sample within a radius."""
        limit = self.limit(eps)
        found = self.hits.get((case, entry), {}).get(one, ())
        return [hit for hit in found if hit.norm <= limit]

    def survivors(self, case: str, entry: int, eps: float) -> list[int]:
        """Samples that an attack has not broken within a radius; all of them for an objective."""
        scores = self.clean[case]
        if not self.verdicts:
            return list(scores)
        right = (one for one, score in scores.items() if score == 0)
        return [one for one in right if not self.within(case, entry, one, eps)]

    def worst(
        self, case: str, entries: Sequence[int], one: int, eps: float
    ) -> tuple[float | None, Hit | None]:
        """The worst score of a sample within a radius, over attacks, and what reached it.

        The first hit of several equal ones; None beside the score for a clean sample.
        """
        score, best = self.clean[case][one], None
        for entry in entries:
            for hit in self.within(case, entry, one, eps):
                if score is None or hit.score > score:
                    score, best = hit.score, hit
        return score, best
