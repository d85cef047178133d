"""Flags raised by what the attacks of an evaluation found, compared with each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from advdiff_core.engine.robust import soundness_limits as limits
from advdiff_core.engine.robust.evidence import AttackOutcome, Evidence, Flag

__all__ = ["ahead", "iterative", "outcome_flags", "union"]


def outcome_flags(evidence: Evidence, classes: int) -> list[Flag]:
    """What is wrong with the outcomes themselves; runs nothing.

    Args:
        evidence: What the evaluation knows.
        classes: Number of classes.
    """
    outcomes = evidence.outcomes
    found = [_free_ahead(outcomes, evidence.clean), _single_ahead(outcomes, evidence.clean)]
    found += [_silent(outcomes, len(evidence.clean)), _not_finite(outcomes)]
    found += [_few_classes(one, classes) for one in outcomes]
    return [flag for flag in found if flag is not None]


def union(outcomes: Iterable[AttackOutcome], like: Tensor) -> Tensor:
    """Samples that at least one of the attacks broke [N], bool."""
    broken = torch.zeros_like(like)
    for one in outcomes:
        broken |= one.broken & one.tested
    return broken


def ahead(newly: Tensor, of: int, least: float, *, samples: int = limits.LEAST) -> bool:
    """Whether samples broken by one side alone are more than `least` points, and `samples`.

    Args:
        newly: Those samples [N], bool.
        of: Number of all.
        least: Points.
        samples: Fewest samples.
    """
    count = int(newly.sum())
    return count >= samples and limits.points(count, of) > least


def iterative(outcome: AttackOutcome) -> bool:
    """True for attacks that take more than one gradient a sample."""
    return outcome.gradients > 1.5 * max(int(outcome.tested.sum()), 1)


def _free_ahead(outcomes: tuple[AttackOutcome, ...], clean: Tensor) -> Flag | None:
    """An attack without gradients breaks what those with gradients do not."""
    white = [one for one in outcomes if iterative(one)]
    reached = union(white, clean)
    for one in outcomes:
        if not white or one.gradients > 0:
            continue
        newly = one.broken & one.tested & clean & ~reached
        if ahead(newly, len(clean), limits.FREE_POINTS):
            return _beaten(one, int(newly.sum()), len(clean))
    return None


def _beaten(outcome: AttackOutcome, count: int, of: int) -> Flag:
    asked = outcome.forwards / max(int(outcome.tested.sum()), 1)
    blind = asked <= 2
    how = "does not look at the model" if blind else f"asks for logits alone ({asked:.0f} times)"
    message = (
        f"{outcome.name} {how} and breaks {count} of {of} samples"
        f" ({limits.points(count, of):.2f} points) that no attack with gradients breaks"
    )
    fix = (
        "gradients are masked: attack with more steps, other losses, and through a smooth stand-in"
    )
    code = "transfer-beats-gradient" if blind else "query-beats-gradient"
    return Flag(code=code, message=message, fix=fix)


def _single_ahead(outcomes: tuple[AttackOutcome, ...], clean: Tensor) -> Flag | None:
    """A single step breaks what many steps do not."""
    many = [one for one in outcomes if iterative(one)]
    for one in outcomes:
        if not many or one.gradients == 0 or iterative(one):
            continue
        newly = one.broken & one.tested & clean & ~union(many, clean)
        if ahead(newly, len(clean), limits.FREE_POINTS):
            count = int(newly.sum())
            message = (
                f"{one.name} takes one step and breaks {count} of {len(clean)} samples that no"
                " iterative attack breaks"
            )
            return _single(message)
    return None


def _single(message: str) -> Flag:
    fix = "the iterative attack is broken or its steps are wrong: look at its step size and loss"
    return Flag(code="single-step-beats-iterative", message=message, fix=fix)


def _silent(outcomes: tuple[AttackOutcome, ...], count: int) -> Flag | None:
    silent = {one.name: one.silent for one in outcomes if one.silent > 0}
    total = sum(silent.values())
    if total == 0:
        return None
    names = ", ".join(silent)
    message = f"{names} passed {total} broken inputs inside the budget and returned others"
    fix = "let the attack keep the best input it has seen, not the last one"
    grave = limits.points(total, count) > limits.FREE_POINTS
    return Flag(
        code="silent-success", message=message, fix=fix,
        severity="unsound" if grave else "doubtful",
    )  # fmt: skip


def _not_finite(outcomes: tuple[AttackOutcome, ...]) -> Flag | None:
    found = {one.name: one.not_finite for one in outcomes if one.not_finite > 0}
    if not found:
        return None
    parts = ", ".join(f"{count} by {name}" for name, count in found.items())
    message = f"samples whose logits are not finite count as broken: {parts}"
    fix = "mend the overflow, or the abstention, in the model"
    return Flag(code="not-finite", message=message, fix=fix, severity="doubtful")


def _few_classes(outcome: AttackOutcome, classes: int) -> Flag | None:
    """DLR divides by differences to the third logit, its targeted form to the fourth."""
    words = f"{outcome.use} {outcome.settings.get('loss', '')}"
    targeted = "apgd-t" in words or "targeted" in words
    wanted = 4 if targeted else 3 if "dlr" in words else 0
    if classes >= wanted:
        return None
    message = f"{outcome.name} needs {wanted} classes for its loss, the model has {classes}"
    fix = "take the loss margin, or apgd-ce and fab"
    return Flag(code="few-classes", message=message, fix=fix, severity="doubtful")
