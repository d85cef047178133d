"""An evaluation under attack, from a job to its report in the run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve

from advdiff_core.engine import strict_json
from advdiff_core.engine.distributed import World
from advdiff_core.engine.fsio import sweep_temps, write_atomic
from advdiff_core.engine.lock import Lock
from advdiff_core.engine.robust import result
from advdiff_core.engine.robust.findings import Findings
from advdiff_core.engine.robust.gather import flags_of
from advdiff_core.engine.robust.guard import digest_of
from advdiff_core.engine.robust.job import AttackJob, Entry, entries, stages
from advdiff_core.engine.robust.journal import JOURNAL, Followed, Journal, Record, claim
from advdiff_core.engine.robust.purified import draw_notes, stand_in_flags
from advdiff_core.engine.robust.runner import Runner
from advdiff_core.engine.robust.saved import missing_saved, save_examples
from advdiff_core.engine.robust.subjects import Subject, make_subject
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.signals import StopFlag
from advdiff_core.errors import UsageError
from advdiff_core.recipe.recipe import plain

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained

__all__ = ["FOLDER", "REPORT", "attack_run"]

#: Folder of evaluations in a run folder, and the names of the files in each.
FOLDER = "robust"
REPORT = "report.json"
EXAMPLES = "examples.jsonl"


def attack_run(
    trained: Trained,
    job: AttackJob,
    *,
    stop: StopFlag | tuple[()] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> result.RobustReport:
    """Attack a run, or go on with an evaluation that was stopped.

    Args:
        trained: The run; its networks are left as they are.
        job: What is evaluated.
        stop: Set by a signal; honoured after the bucket in progress.
        tell: Gets a line per stage.

    Raises:
        UsageError: If the job does not fit the run, or the folder holds another evaluation.
        UnsoundError: If an attack fails or breaks its budget; no number is then stated.
        Interrupted: If a signal asked to stop; whole buckets are kept.

    Several processes (`trained.world`) share the work: each of them calls this.
    """
    built = entries(job, trained.experiment)
    subject = make_subject(job, trained.experiment)
    _check_radii(job, subject)
    config = _config(trained, job, built, subject)
    folder, world = _folder(trained, job, config), trained.world
    with ExitStack() as stack:
        stored = world.ranks.on_main(lambda: _opened(folder, config, job, stack))
        if stored is not None:
            return result.RobustReport.from_json(folder, stored)
        stack.enter_context(_exact())
        runner = _runner(trained, job, built, subject, _journal(folder, world, stack))
        runner.stop, runner.world = stop, world
        runner.tell = tell if world.is_main else lambda line: None
        runner.run()
        tables = world.ranks.on_main(lambda: _finish(runner, folder, config, trained).as_json())
        return result.RobustReport.from_json(folder, tables)


def _opened(
    folder: Path, config: Mapping[str, Any], job: AttackJob, stack: ExitStack
) -> dict[str, Any] | None:
    """Take the folder for this evaluation; its report, if it has been finished."""
    claim(folder, config)
    stack.enter_context(Lock(folder / ".lock"))
    sweep_temps(folder)
    stored = folder / REPORT
    if not stored.exists() or missing_saved(folder, job.save):
        return None
    tables: dict[str, Any] = strict_json.loads(read_bytes(stored, limit=2**30), where=str(stored))
    return tables


def _journal(folder: Path, world: World, stack: ExitStack) -> Record:
    """The journal, which the main process writes and the others follow."""
    if world.size == 1:
        return stack.enter_context(closing(Journal(folder)))
    mine: list[Journal] = []

    def read() -> list[dict[str, Any]]:
        mine.append(stack.enter_context(closing(Journal(folder))))
        return mine[0].rows

    rows = world.ranks.on_main(read)
    return mine[0] if mine else Followed(folder / JOURNAL, rows)


@contextmanager
def _exact() -> Iterator[None]:
    """Float32 products in full, where a GPU would round them to TensorFloat-32, and repeatable."""
    products = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(products)


def _runner(
    trained: Trained, job: AttackJob, built: tuple[Entry, ...], subject: Subject, journal: Record
) -> Runner:
    scale = _scale(trained, subject)
    findings = Findings(norm=job.norm, size=_size(trained), verdicts=subject.verdicts, scale=scale)
    return Runner(
        subject=subject, job=job, entries=built, journal=journal, findings=findings,
        stages=stages(built, subject.cases, job.radii),
    )  # fmt: skip


def _size(trained: Trained) -> int:
    return torch.Size(trained.info.shape).numel()


def _scale(trained: Trained, subject: Subject) -> float:
    """Units of an input that 1 of eps is: the width of the data's domain."""
    domain = subject.domain or trained.info.domain
    return 1.0 if domain is None else float(domain.span)


def _check_radii(job: AttackJob, subject: Subject) -> None:
    for eps in job.radii:
        if subject.domain is not None and job.norm == "linf" and eps > 1:
            message = f"{eps:g} is above 1, the whole range of an image"
            fix = f"for {eps:g}/255 write --eps {eps:g}/255"
            raise UsageError(message, code="E10", where="--eps", fix=fix)


def _config(
    trained: Trained, job: AttackJob, built: tuple[Entry, ...], subject: Subject
) -> dict[str, Any]:
    """Everything the numbers depend on, as plain values."""
    compute = trained.experiment.scene.compute
    facts = subject.facts
    return {
        **facts,
        "weights": digest_of(subject.module),
        "nimg": trained.nimg,
        "norm": job.norm,
        "eps": list(job.radii),
        "scale": _scale(trained, subject),
        "levels": trained.info.domain is not None,
        "samples": {"num": len(subject.ids), "pick": job.pick},
        "cases": list(subject.cases),
        "seed": job.seed,
        "batch": job.batch,
        "attacks": [_attack(entry) for entry in built],
        "device": compute.device.type,
        "torch": str(torch.__version__),
    }


def _attack(entry: Entry) -> dict[str, Any]:
    spec = entry.spec
    settings = plain(spec.settings)
    return {
        "name": entry.name, "use": spec.use, "settings": settings,
        "distribution": f"{spec.distribution} {spec.version}".strip(),
        "members": {name: plain(one.settings) for name, one in entry.members.items() if name},
    }  # fmt: skip


def _folder(trained: Trained, job: AttackJob, config: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(strict_json.dumps(config)).hexdigest()[:12]
    return trained.rundir.resolve(f"{FOLDER}/{job.name or digest}")


def _finish(
    runner: Runner, folder: Path, config: dict[str, Any], trained: Trained
) -> result.RobustReport:
    """Write what was found: lines per sample, saved inputs, the report last."""
    findings, job = runner.findings, runner.job
    report = result.RobustReport(
        folder=folder,
        config=config,
        clean=result.clean_of(findings),
        curve=result.curve_of(findings, runner.entries, job.radii),
        stages=result.stage_facts(findings, runner.stages),
        notes=(
            *runner.subject.notes,
            *_notes(runner),
            *draw_notes(findings, job, len(runner.entries)),
        ),
    )
    if runner.subject.verdicts:
        probed: list[str] = []
        flags = flags_of(runner, trained.experiment.make, probed)
        if job.purify is not None:
            flags += stand_in_flags(runner.subject, job.purify.gradient)
        report = evolve(report, flags=tuple(flags), notes=(*report.notes, *probed))
    rows = result.example_rows(findings, runner.stages, job.radii, len(runner.entries))
    write_atomic(folder / EXAMPLES, b"".join(strict_json.dumps(row) for row in rows))
    if job.save:
        save_examples(runner, folder)
    write_atomic(folder / REPORT, strict_json.dumps(report.as_json()))
    return report


def _notes(runner: Runner) -> list[str]:
    """What was seen on the way that the numbers do not tell."""
    findings, notes = runner.findings, []
    for case, count in findings.not_finite.items():
        if count:
            where = f" at {case}" if case else ""
            what = "counted as wrong" if findings.verdicts else "left out of the means"
            notes.append(f"{count:,} clean samples have outputs that are not finite{where}: {what}")
    for stage in result.stage_facts(findings, runner.stages):
        if stage.not_finite:
            what = "counted as broken" if findings.verdicts else "left out"
            found = f"{stage.not_finite:,} inputs with outputs that are not finite: {what}"
            notes.append(f"{stage.name} found {found}")
        if stage.silent:
            found = f"saw {stage.silent:,} samples broken that it returned unbroken"
            notes.append(f"{stage.name} {found}: they count as robust")
    return notes
