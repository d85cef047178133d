"""Runs attacks over samples: buckets of those that are left, each checked and recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from advdiff_core.draws import SampleDraws
from advdiff_core.engine.distributed import World
from advdiff_core.engine.failpoints import failpoint
from advdiff_core.engine.robust.checker import check_inputs, slack
from advdiff_core.engine.robust.findings import CLEAN, Findings
from advdiff_core.engine.robust.guard import Guard, keyed_randomness, own_randomness
from advdiff_core.engine.robust.job import AttackJob, Entry, Stage
from advdiff_core.engine.robust.journal import Record
from advdiff_core.engine.robust.subjects import Outcome, Start, Subject
from advdiff_core.engine.robust.watch import Tally, Watched
from advdiff_core.engine.signals import StopFlag
from advdiff_core.errors import DataError, Interrupted, UnsoundError
from advdiff_core.interfaces.attack import Attack
from advdiff_core.types import Budget

__all__ = ["Runner", "Searched", "cut", "search"]


@frozen(kw_only=True, eq=False)
class Searched:
    """What a search over one bucket came to, after the check.

    Attributes:
        start: Clean inputs.
        x: What the attack returned [B, ...].
        norms: Norm of each perturbation [B], in units of the input, float64.
        outcome: What comes of it, by a fresh forward.
        tally: What the search cost, and saw.
    """

    start: Start
    x: Tensor
    norms: Tensor
    outcome: Outcome
    tally: Tally

    @property
    def silent(self) -> int:
        """Samples that the search saw broken inside the budget and returned unbroken."""
        return int((self.tally.seen.cpu() & (self.outcome.score == 0)).sum())


def search(  # noqa: PLR0913 - one attack on one bucket.
    subject: Subject,
    attack: Attack,
    start: Start,
    *,
    case: str,
    name: str,
    budget: Budget,
    key: tuple[object, ...],
) -> Searched:
    """Attack one bucket, check what is returned and judge it by a fresh forward.

    Args:
        subject: What is attacked.
        attack: The attack, without members.
        start: Clean inputs.
        case: Which of the subject's cases.
        name: Name of the attack, for messages.
        budget: Norm and radius, one float in units of the input.
        key: Words that key the random numbers; each sample has a stream of its own.

    Raises:
        UnsoundError: E25 if the attack fails, E09 if what it returns breaks the budget, E17 if it
            leaves a trace.
    """
    x, radius = start.x, float(budget.radius)
    limit = radius
    if math.isfinite(radius) and len(x):
        limit += slack(radius, budget.norm, size=x[0].numel(), largest=float(x.abs().max()))
    tally = Tally(seen=torch.zeros(len(x), dtype=torch.bool, device=x.device))
    victim = Watched(
        subject.victim(case, start), x, norm=budget.norm, limit=limit,
        domain=subject.domain, tally=tally
    )  # fmt: skip
    draws = SampleDraws(key, start.ids, device=x.device)
    with own_randomness((*key, *start.ids[:1]), x.device, tally, name):
        try:
            found = attack.run(victim, x.clone(), budget, domain=subject.domain, rng=draws)
        except Interrupted:
            raise
        except Exception as cause:
            raise _failed(name, start, cause) from cause
    norms = check_inputs(
        found, x, norm=budget.norm, radius=radius, domain=subject.domain, attack=name,
        ids=list(start.ids),
    )  # fmt: skip
    # A network that draws random numbers is judged by others than those that it was attacked under.
    with keyed_randomness((*key, "verdict", *start.ids[:1]), x.device):
        outcome = subject.outcome(case, start, found)
    return Searched(start=start, x=found, norms=norms, outcome=outcome, tally=tally)


def _failed(name: str, start: Start, cause: Exception) -> UnsoundError:
    message = f"failed on samples {start.ids[0]} to {start.ids[-1]}: {type(cause).__name__}: "
    message += f"{cause}; no robust accuracy is stated"
    memory = isinstance(cause, torch.OutOfMemoryError)
    fix = "take a smaller --batch" if memory else "mend the attack, or leave it out"
    return UnsoundError(message, code="E25", where=f"attack {name}", fix=fix)


def cut(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    """The samples in buckets of a fixed size, the last one smaller."""
    for first in range(0, len(ids), size):
        yield list(ids[first : first + size])


@define(kw_only=True, eq=False)
class Runner:
    """An evaluation that goes on where its journal ends.

    Buckets are cut from the samples that are left when a stage begins, which the journal tells: so
    a resumed evaluation runs the very buckets that one in a single go does.

    Attributes:
        subject: What is attacked.
        job: The job.
        entries: Its attacks.
        stages: What is run, in order.
        journal: Where it is recorded.
        findings: What was found.
        stop: Set by a signal; honoured after the bucket in progress.
        tell: Gets a line per stage.
        kept: Searches of this process that found something, for those who save examples.
        world: Processes that share the buckets: each bucket is run by one of them and recorded by
            the main one, in the order in which a single process runs them.
    """

    subject: Subject
    job: AttackJob
    entries: tuple[Entry, ...]
    stages: tuple[Stage, ...]
    journal: Record
    findings: Findings
    stop: StopFlag | tuple[()] = ()
    tell: Callable[[str], None] = field(default=lambda line: None)
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(factory=dict)
    world: World = field(factory=World)
    _next: int = field(default=0, init=False)

    def run(self) -> None:
        """Judge the clean samples, then run every stage.

        Raises:
            UnsoundError: E09, E17 or E25; nothing of the bucket is recorded.
            Interrupted: If a signal asked to stop; whole buckets are kept.
        """
        guard = Guard(self.subject.module)
        for case in self.subject.cases:
            self._clean(case)
        for stage in self.stages:
            began = self._next
            left = self.findings.survivors(stage.case, stage.entry, stage.level)
            self._stage(stage, left)
            if self._next > began:
                self.world.ranks.agree(partial(guard.check, stage.name))
            self._say(stage, len(left))

    def _recorded(self, stage: str | int, ids: list[int]) -> Mapping[str, Any] | None:
        """The journal's line of a bucket; None if the journal ends before it."""
        if self._next >= len(self.journal.rows):
            return None
        row = self.journal.rows[self._next]
        if row.get("stage") != stage or row["ids"] != ids:
            message = f"line {self._next + 1} is of other samples than those whose turn it is"
            fix = "remove the folder and evaluate again"
            raise DataError(message, code="S15", where=str(self.journal.path), fix=fix)
        self._next += 1
        return row

    def _rows(
        self, name: str | int, ids: Sequence[int], make: Callable[[list[int]], dict[str, Any]]
    ) -> Iterator[Mapping[str, Any]]:
        """The lines of all buckets of a stage, out of the journal or made and recorded now."""
        buckets = list(cut(ids, self.job.batch))
        while buckets and (row := self._recorded(name, buckets[0])) is not None:
            buckets.pop(0)
            yield row
        for first in range(0, len(buckets), self.world.size):
            yield from self._round(buckets[first : first + self.world.size], make)

    def _round(
        self, buckets: list[list[int]], make: Callable[[list[int]], dict[str, Any]]
    ) -> Iterator[Mapping[str, Any]]:
        """Make a bucket on each process, and record them in their order."""

        def mine() -> dict[str, Any] | None:
            return make(buckets[self.world.rank]) if self.world.rank < len(buckets) else None

        made = [row for row in self.world.ranks.agree(mine) if row is not None]
        self.world.ranks.agree(lambda: self._record(made))
        yield from made
        if self.world.any(bool(self.stop)):
            message = "stopped; whole buckets are kept"
            fix = "go on with the same command"
            raise Interrupted(message, where=str(self.journal.path.parent), fix=fix)

    def _record(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            failpoint("robust.bucket")
            self.journal.append(row)
            self._next += 1

    def _clean(self, case: str) -> None:
        stage = f"{CLEAN} {case}".strip()

        def make(ids: list[int]) -> dict[str, Any]:
            start = self.subject.start(case, ids)
            with keyed_randomness((self.job.seed, CLEAN, case, ids[0]), start.x.device):
                outcome = self.subject.outcome(case, start, start.x)
            return {
                "stage": stage, "ids": ids, "score": _numbers(outcome.score),
                "labels": None if start.y is None else start.y.tolist(),
                "not_finite": int((~outcome.finite).sum()),
            }  # fmt: skip

        for row in self._rows(stage, self.subject.ids, make):
            self.findings.add_clean(case, row)

    def _stage(self, stage: Stage, left: Sequence[int]) -> None:
        def make(ids: list[int]) -> dict[str, Any]:
            began = time.monotonic()
            done = self.search(stage, ids)
            self._keep(stage, done)
            return self._row(stage, done, time.monotonic() - began)

        for row in self._rows(stage.number, left, make):
            self.findings.add(stage.case, stage.entry, stage.number, row)

    def search(self, stage: Stage, ids: list[int]) -> Searched:
        """Run a stage on some samples, without recording it."""
        radius = math.inf if stage.eps is None else stage.eps * self.findings.scale
        key: tuple[object, ...] = (self.job.seed, "robust", self.entries[stage.entry].name)
        return search(
            self.subject, stage.attack, self.subject.start(stage.case, ids), case=stage.case,
            name=stage.name, budget=Budget(self.job.norm, radius, "image"),
            key=(*key, stage.member) if stage.member else key,
        )  # fmt: skip

    def _row(self, stage: Stage, done: Searched, seconds: float) -> dict[str, Any]:
        norms = done.norms / self.findings.scale
        return {
            "stage": stage.number,
            "ids": list(done.start.ids),
            "score": _numbers(done.outcome.score),
            "norm": norms.tolist(),
            "max_norm": float(norms.max()),
            "not_finite": int((~done.outcome.finite).sum()),
            "silent": done.silent if self.findings.verdicts else 0,
            "forwards": done.tally.forwards,
            "gradients": done.tally.gradients,
            "seconds": seconds,
        }

    def is_kept(self, stage: Stage) -> bool:
        """Whether inputs of a stage may be saved: of an objective those of the largest radius."""
        largest = self.job.radii[-1]
        return self.findings.verdicts or stage.eps in (None, largest)

    def _keep(self, stage: Stage, done: Searched) -> None:
        """Remember inputs that may be saved, as many as that takes."""
        have = {one for _, one in self.kept}
        for place, one in enumerate(done.start.ids):
            found = self.is_kept(stage) and float(done.outcome.score[place]) > 0
            if found and one not in have and len(self.kept) < self.job.save:
                self.kept[stage.number, one] = (done.start.x[place].cpu(), done.x[place].cpu())

    def _say(self, stage: Stage, tested: int) -> None:
        radius = "any radius" if stage.eps is None else f"eps {stage.eps:.4g}"
        where = f" at {stage.case}" if stage.case else ""
        if not self.findings.verdicts:
            self.tell(f"{stage.name}, {radius}{where}: {tested:,} samples")
            return
        left = len(self.findings.survivors(stage.case, stage.entry, stage.level))
        self.tell(f"{stage.name}, {radius}{where}: {tested - left:,} of {tested:,} broken")


def _numbers(values: Tensor) -> list[float | None]:
    """Numbers for JSON, which has none that are not finite."""
    return [one if math.isfinite(one) else None for one in values.tolist()]
