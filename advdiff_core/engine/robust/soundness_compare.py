"""Flags raised by holding the attacks of an evaluation against searches of the core's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from advdiff_core.engine.robust import soundness_limits as limits
from advdiff_core.engine.robust.evidence import AttackOutcome, Evidence, Flag
from advdiff_core.engine.robust.soundness_model import Inspected, Loss, cross_entropy, margin
from advdiff_core.engine.robust.soundness_outcomes import ahead, iterative, union
from advdiff_core.engine.robust.soundness_search import Searches

__all__ = ["compare_flags"]

#: Most gradients a sample that a repeated attack may cost; the next cheaper one is repeated else.
DEAREST = 500


def compare_flags(model: Inspected, evidence: Evidence) -> list[Flag]:
    """What simple searches find that the attacks of the evaluation did not.

    Args:
        model: The classifier; runs `QUERIES` forwards, `NOISE_DRAWS` forwards, three climbs of
            `CLIMB_STEPS` and two single steps on `evidence.x`, and one attack again with twice its
            steps.
        evidence: What the evaluation knows.
    """
    searches = Searches.of(model, evidence)
    known = _known(evidence)
    raw = searches.climb(cross_entropy, steps=limits.CLIMB_STEPS)
    scaled = searches.climb(_scaled(model.logits(evidence.x)), steps=limits.CLIMB_STEPS)
    by_margin = searches.climb(margin, steps=limits.CLIMB_STEPS)
    found = [
        _noise(searches.noise(limits.NOISE_DRAWS) & ~known),
        _queries(searches.queries(limits.QUERIES) & ~known & ~by_margin & ~scaled),
        _single(evidence, searches, known),
        _scale(raw, scaled, by_margin, known),
        _converged(evidence, (by_margin | scaled) & ~known, known),
    ]
    return [flag for flag in found if flag is not None]


def _known(evidence: Evidence) -> Tensor:
    """Samples of `evidence.x` that the evaluation counts as broken [B], bool."""
    broken = union(evidence.outcomes, evidence.clean) | ~evidence.clean
    return broken[: len(evidence.x)]


def _scaled(clean: Tensor) -> Loss:
    """Cross-entropy of logits with unit spread, whatever factor the model multiplies them by."""
    spread = clean.std().clamp_min(1e-30)
    return lambda logits, y: cross_entropy(logits / spread, y)


def _noise(newly: Tensor) -> Flag | None:
    if not ahead(newly, len(newly), limits.FREE_POINTS):
        return None
    message = (
        f"{limits.NOISE_DRAWS} random points in the ball break {int(newly.sum())} of {len(newly)}"
        " samples that the attacks leave"
    )
    fix = "the attack does not search, or its gradients mislead it: look at its steps and its loss"
    return Flag(code="noise-beats-attack", message=message, fix=fix)


def _queries(newly: Tensor) -> Flag | None:
    if not ahead(newly, len(newly), limits.FREE_POINTS):
        return None
    message = (
        f"{limits.QUERIES} queries without gradients break {int(newly.sum())} of {len(newly)}"
        " samples that no attack with gradients breaks"
    )
    fix = "gradients are masked: attack with square, and through a smooth stand-in (BPDA)"
    return Flag(code="query-beats-gradient", message=message, fix=fix)


def _single(evidence: Evidence, searches: Searches, known: Tensor) -> Flag | None:
    if not any(iterative(one) for one in evidence.outcomes):
        return None
    newly = (searches.climb(margin, steps=1) | searches.climb(cross_entropy, steps=1)) & ~known
    if not ahead(newly, len(newly), limits.FREE_POINTS):
        return None
    message = (
        f"one step of the whole radius breaks {int(newly.sum())} of {len(newly)} samples that the"
        " iterative attacks leave"
    )
    fix = "the iterative attack is broken or its steps are wrong: look at its step size and loss"
    return Flag(code="single-step-beats-iterative", message=message, fix=fix)


def _scale(raw: Tensor, scaled: Tensor, by_margin: Tensor, known: Tensor) -> Flag | None:
    """Cross-entropy finds much less than the same loss of logits brought to scale."""
    better, worse = int((scaled & ~raw).sum()), int((raw & ~scaled).sum())
    gap = limits.points(better - worse, len(raw))
    if gap <= limits.DISAGREE_POINTS or _luck(better, worse) > limits.SURE:
        return None
    missed = _gains((scaled | by_margin) & ~known)
    message = (
        f"an attack with cross-entropy leaves {_left(raw)}, with the margin {_left(by_margin)} and"
        f" with logits brought to scale {_left(scaled)}: the size of the logits hides gradients"
    )
    fix = "attack with the loss margin or dlr, which do not see the scale"
    return Flag(
        code="logit-scale", message=message, fix=fix, severity="unsound" if missed else "doubtful"
    )


def _left(broken: Tensor) -> str:
    return f"{limits.points(int((~broken).sum()), len(broken)):.1f} %"


def _luck(better: int, worse: int) -> float:
    """Chance of so many better ones of all that differ, by a fair coin (sign test, one side)."""
    count = better + worse
    if count == 0:
        return 1.0
    return sum(math.comb(count, k) for k in range(better, count + 1)) / 2**count


def _converged(evidence: Evidence, climbed: Tensor, known: Tensor) -> Flag | None:
    """More steps, another start, or the core's own search find more."""
    doubled = _doubled(evidence)
    if doubled is not None:
        name, settings, broken = doubled
        newly = broken & ~known
        if _gains(newly):
            return _unfinished(f"{name} with {settings} and a fresh start", newly)
    if _gains(climbed):
        return _unfinished(f"{2 * limits.CLIMB_STEPS} plain steps", climbed)
    return None


def _gains(newly: Tensor) -> bool:
    return ahead(newly, len(newly), limits.CONVERGED_POINTS, samples=limits.LEAST_GAIN)


def _unfinished(how: str, newly: Tensor) -> Flag:
    message = (
        f"{how} break {int(newly.sum())} of {len(newly)} samples"
        f" ({limits.points(int(newly.sum()), len(newly)):.1f} points) that the attacks leave"
    )
    fix = "more steps and restarts, until they gain nothing"
    return Flag(code="not-converged", message=message, fix=fix, severity="doubtful")


def _doubled(evidence: Evidence) -> tuple[str, str, Tensor] | None:
    """The dearest affordable attack with gradients, run again with twice its steps."""
    costs = {
        one.gradients / max(int(one.tested.sum()), 1): one
        for one in evidence.outcomes
        if one.gradients > 0
    }
    if not costs:
        return None
    affordable = [cost for cost in costs if cost <= DEAREST]
    chosen = costs[max(affordable) if affordable else min(costs)]
    settings, told = _more(chosen)
    broken = evidence.probe(chosen.use, settings)
    return None if broken is None else (chosen.name, told, broken)


def _more(outcome: AttackOutcome) -> tuple[Mapping[str, Any], str]:
    steps = outcome.settings.get("steps")
    if not isinstance(steps, int):
        return outcome.settings, "the same settings"
    return {**outcome.settings, "steps": 2 * steps}, f"{2 * steps} steps"
