"""Whether a robust accuracy can be trusted: flags raised on what an evaluation found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from advdiff_core.draws import keyed_generator
from advdiff_core.engine.robust.evidence import AttackOutcome, Evidence, Flag, Inspection
from advdiff_core.engine.robust.soundness_compare import compare_flags
from advdiff_core.engine.robust.soundness_forward import forward_flags
from advdiff_core.engine.robust.soundness_gradient import gradient_flags
from advdiff_core.engine.robust.soundness_model import Inspected
from advdiff_core.engine.robust.soundness_outcomes import outcome_flags

__all__ = ["AttackOutcome", "Evidence", "Flag", "Inspection", "inspect", "judge"]

#: Of these classifiers two searches that differ tell nothing.
_UNSTEADY = ("randomised", "moving-statistics")


def judge(evidence: Evidence) -> list[Flag]:
    """Every flag that the evidence raises, the gravest first; see `inspect`.

    Args:
        evidence: What the evaluation knows; its notes get what the probes cost.
    """
    found = inspect(evidence)
    evidence.notes.append(
        f"soundness was probed on {found.samples:,} samples: {found.forwards:,} forwards of single"
        f" samples, {found.gradients:,} of them with a gradient"
    )
    return list(found.flags)


def inspect(evidence: Evidence) -> Inspection:
    """Probe the classifier, and hold the attacks against each other and against plain searches.

    Nothing is remembered between two calls: the order in which classifiers are judged in one
    process changes nothing. Of a randomised classifier only what a single draw can tell is asked.

    Args:
        evidence: What the evaluation knows; its network is left as it was.
    """
    model = Inspected(evidence.module)
    with model.watching(), _own_randomness(evidence.x.device):
        flags = forward_flags(model, evidence)
        random = any(flag.code in _UNSTEADY for flag in flags)
        classes = model.logits(evidence.x[:1]).shape[1]
        # What was seen of a random model at one draw is not what another draw shows.
        found = outcome_flags(evidence, classes)
        flags += [flag for flag in found if not (random and flag.code == "silent-success")]
        if not random:
            flags += gradient_flags(model, evidence)
        if not random and evidence.outcomes:
            flags += compare_flags(model, evidence)
    return Inspection(
        flags=_once(flags), samples=len(evidence.x), forwards=model.forwards,
        gradients=model.gradients,
    )  # fmt: skip


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Torch's global generators seeded in the body, and put back: one inspection, one result."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_generator("soundness").initial_seed())
        yield


def _once(flags: list[Flag]) -> tuple[Flag, ...]:
    """One flag of each code, unsound ones first, in the order found."""
    ordered = sorted(flags, key=lambda flag: flag.severity != "unsound")
    return tuple({flag.code: flag for flag in reversed(ordered)}.values())[::-1]
