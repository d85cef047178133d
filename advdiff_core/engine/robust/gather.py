"""What is handed to those who judge whether a robust accuracy can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from advdiff_core.engine.robust.evidence import AttackOutcome, Evidence, Flag
from advdiff_core.engine.robust.job import Stage
from advdiff_core.engine.robust.result import stage_facts
from advdiff_core.engine.robust.runner import search
from advdiff_core.engine.robust.soundness import judge
from advdiff_core.errors import AdvdiffError
from advdiff_core.interfaces.attack import Attack
from advdiff_core.recipe.named import named_component
from advdiff_core.recipe.recipe import plain
from advdiff_core.types import Budget

if TYPE_CHECKING:
    from collections.abc import Callable

    from advdiff_core.engine.robust.runner import Runner
    from advdiff_core.settings import Spec

__all__ = ["PROBED", "evidence_of", "flags_of"]

#: Samples that probes run on.
PROBED = 128


def flags_of(runner: Runner, make: Callable[[Spec], Any], notes: list[str]) -> list[Flag]:
    """The flags of a finished evaluation of a classifier.

    Args:
        runner: The evaluation.
        make: Builds a component.
        notes: Gets what has to be said beside the flags.
    """
    evidence = evidence_of(runner, make)
    flags = judge(evidence)
    notes.extend(evidence.notes)
    return flags


def evidence_of(runner: Runner, make: Callable[[Spec], Any]) -> Evidence:
    """What is known at the radius that the job names first (zero left out).

    Args:
        runner: The evaluation.
        make: Builds a component.
    """
    findings, subject = runner.findings, runner.subject
    eps = next((one for one in runner.job.eps if one > 0), 0.0)
    budget = Budget(runner.job.norm, eps * findings.scale, "image")
    start = subject.start("", list(subject.ids[:PROBED]))
    assert start.y is not None, "classified samples have labels"
    clean = torch.tensor([findings.clean[""][one] == 0 for one in subject.ids])

    def probe(use: str, settings: Mapping[str, Any]) -> Tensor | None:
        table = {"use": use, **settings}
        try:
            attack = cast("Attack", make(named_component("attack", table, path=("probe",))))
            if budget.norm not in attack.norms:
                return None
            key = (runner.job.seed, "probe", use, sorted(map(str, settings.items())))
            done = search(
                subject, attack, start, case="", name=f"{use} (probe)", budget=budget, key=key
            )
        except AdvdiffError:
            return None
        return (done.outcome.score > 0) | ~clean[: len(start.ids)]

    return Evidence(
        victim=subject.victim("", start), module=subject.module, x=start.x, y=start.y,
        budget=budget, domain=subject.domain, clean=clean, probe=probe,
        outcomes=tuple(
            _outcome(runner, stage, eps) for stage in runner.stages if stage.eps in (None, eps)
        ),
    )  # fmt: skip


def _outcome(runner: Runner, stage: Stage, eps: float) -> AttackOutcome:
    findings = runner.findings
    rows = findings.rows.get(stage.number, [])
    (facts,) = stage_facts(findings, [stage])
    limit = findings.limit(eps)
    tested = {one for row in rows for one in row["ids"]}
    broken = {
        one
        for row in rows
        for one, score, norm in zip(row["ids"], row["score"], row["norm"], strict=True)
        if score and norm <= limit
    }
    entry = runner.entries[stage.entry]
    return AttackOutcome(
        name=stage.name, use=stage.member or entry.spec.use,
        settings={key: one for key, one in plain(stage.attack.settings).items() if key != "use"},
        tested=_mask(runner, tested), broken=_mask(runner, broken), silent=facts.silent,
        not_finite=facts.not_finite, forwards=facts.forwards, gradients=facts.gradients,
    )  # fmt: skip


def _mask(runner: Runner, chosen: set[int]) -> Tensor:
    return torch.tensor([one in chosen for one in runner.subject.ids])
