"""A run's classifier behind a purifier that is made of another run's denoiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.draws import keyed_generator
from advdiff_core.engine.robust.evidence import Flag
from advdiff_core.engine.robust.guard import digest_of
from advdiff_core.engine.robust.purify import Gradient, Purified, Purifier, gradient_text
from advdiff_core.engine.robust.soundness_model import Inspected, margin
from advdiff_core.engine.robust.subjects import Outcome, Start, Subject
from advdiff_core.engine.robust.victims import average_of, network, role_of
from advdiff_core.errors import DataError, UsageError
from advdiff_core.interfaces.attack import Victim
from advdiff_core.interfaces.classifier import ClassifierVictim
from advdiff_core.interfaces.sampler import Sampler
from advdiff_core.math import grids
from advdiff_core.types import DataInfo, Domain, Prediction

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.assemble import Experiment
    from advdiff_core.engine.robust.findings import Findings
    from advdiff_core.engine.robust.job import AttackJob, Purify

__all__ = ["draw_notes", "purified", "stand_in_flags"]

#: Samples whose gradient is held against the full one; ours.
CHECKED = 8


def purified(inner: Subject, job: AttackJob, experiment: Experiment) -> Subject:
    """The classifier of `inner`, behind the purifier of the job.

    Raises:
        UsageError: If the other run has no denoiser or sampler, or the time is none of its own.
        DataError: If its data are of another shape, or one of the two has no domain.
    """
    from advdiff_core.engine.api import open_trained

    assert job.purify is not None, "asked for with a purifier alone"
    trained = open_trained(job.purify.run)
    domains = _domains(experiment.source.info, trained.info, job.purify.run)
    made = _purifier(job.purify, trained, domains, experiment.scene.compute.device)
    module = Purified(made, inner.module).eval()
    told = {
        "run": str(job.purify.run), "weights": digest_of(made.network), "nimg": trained.nimg,
        "t": float(made.grid[0]), "steps": made.steps, "gradient": job.purify.gradient,
        "last": job.purify.last, "draws": job.purify.draws,
        "sampler": cast("Any", trained.recipe.sample).spec.use,
    }  # fmt: skip
    return _Purified(
        inner=inner, module=module, seed=job.seed, draws=job.purify.draws,
        facts={**inner.facts, "purify": told}, notes=[*inner.notes, *_notes(made, domains)],
    )  # fmt: skip


def _domains(own: DataInfo, other: DataInfo, run: Path) -> tuple[Domain, Domain] | None:
    """The two domains, if inputs have to be mapped between them."""
    fix = "take a denoiser that was trained on the classifier's data"
    if own.shape != other.shape:
        message = f"its samples have shape {list(other.shape)}, the classifier's {list(own.shape)}"
        raise DataError(message, code="D03", where=f"--purify {run}", fix=fix)
    if own.domain == other.domain:
        return None
    if own.domain is None or other.domain is None:
        message = f"its samples have the domain {other.domain}, the classifier's {own.domain}"
        raise DataError(message, code="D03", where=f"--purify {run}", fix=fix)
    return own.domain, other.domain


def _purifier(
    purify: Purify, trained: Trained, domains: tuple[Domain, Domain] | None, device: torch.device
) -> Purifier:
    experiment = trained.experiment
    settings, schedule = experiment.recipe.sample, experiment.scene.schedule
    if settings is None or schedule is None:
        message = "has no denoiser to purify with"
        raise UsageError(message, where=f"--purify {purify.run}", fix="name a run that has one")
    if not schedule.t_min < purify.t <= schedule.t_max:
        message = f"found {purify.t:g}, the schedule's time goes from {schedule.t_min:g} to"
        fix = "choose a time between them"
        raise UsageError(f"{message} {schedule.t_max:g}", where="--purify-t", fix=fix)
    role = role_of(experiment, settings.role, denoiser=True)
    denoiser = network(experiment, role, average_of(experiment, role, None)).to(device)
    wear = experiment.scene.roles[role].wear

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        # No label: that of an input is what the classifier is asked for.
        return cast("Prediction", wear(denoiser, x_t, t, None))

    law = schedule.default_grid
    return Purifier(
        denoiser, denoise, schedule, cast("Sampler", experiment.make(settings.spec)),
        grid=grids.sampling_times(schedule, purify.steps, law=law, start=purify.t),
        gradient=purify.gradient, last=purify.last, domains=domains,
    )  # fmt: skip


def _notes(made: Purifier, domains: tuple[Domain, Domain] | None) -> list[str]:
    how = gradient_text(made.gradient, steps=made.steps, last=made.last)
    notes = [
        f"inputs are noised to t = {float(made.grid[0]):g} and denoised in {made.steps} steps, with"
        f" fresh noise in each forward; gradient of the purifier: {made.gradient}, {how}"
    ]
    if domains is not None:
        notes.append(
            f"inputs in [{domains[0].low:g}, {domains[0].high:g}] are mapped to the denoiser's"
            f" [{domains[1].low:g}, {domains[1].high:g}] and back; radii are the classifier's"
        )
    return notes


@frozen(kw_only=True, eq=False)
class _Purified:
    """See `subjects.Subject`; a sample is judged by several draws.

    Its score is 1 if it is misclassified at the first draw, 1/2 if at another one alone: the
    accuracy of the report counts what is right at each of them.
    """

    inner: Subject
    module: nn.Module
    seed: int
    draws: int
    facts: dict[str, Any]
    notes: list[str]
    cases: tuple[str, ...] = ("",)
    verdicts: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return self.inner.ids

    @property
    def domain(self) -> Domain | None:
        return self.inner.domain

    def start(self, case: str, ids: list[int]) -> Start:
        return self.inner.start(case, ids)

    def victim(self, case: str, start: Start) -> Victim:
        del case
        assert start.y is not None, "classified samples have labels"
        return ClassifierVictim(network=self.module, labels=start.y)

    @torch.no_grad()
    def outcome(self, case: str, start: Start, x: Tensor) -> Outcome:
        self.inner.outcome(case, start, x)  # refuses labels that the classifier does not know
        assert start.y is not None, "classified samples have labels"
        wrong, finite = [], torch.ones(len(x), dtype=torch.bool)
        for draw in range(self.draws):
            with seeded(x.device, self.seed, "verdict", draw, *start.ids[:1]):
                logits = self.module(x)
            known = logits.isfinite().all(1).cpu()
            finite &= known
            wrong.append(logits.argmax(1).ne(start.y).cpu() | ~known)
        first, any_ = wrong[0].double(), torch.stack(wrong).any(0).double()
        return Outcome(score=(first + any_) / 2, finite=finite)


@contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """Torch's global generators seeded by the words of `key` in the body, and put back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(keyed_generator(*key).initial_seed())
        yield


def draw_notes(findings: Findings, job: AttackJob, entries: int) -> list[str]:
    """What is right at one draw and at each of several, by radius; nothing without a purifier.

    Args:
        findings: What was found.
        job: The job.
        entries: Number of attacks.
    """
    if job.purify is None:
        return []
    notes = []
    for eps in job.radii:
        ids = findings.clean[""]
        scores = [findings.worst("", range(entries), one, eps)[0] or 0.0 for one in ids]
        one, every = sum(s < 1 for s in scores), sum(s == 0 for s in scores)
        notes.append(
            f"eps {eps:.6g}: {100 * one / len(ids):.2f} % ({one} of {len(ids)}) are right at one"
            f" draw, {100 * every / len(ids):.2f} % ({every}) at each of {job.purify.draws} draws,"
            " which is what the table counts"
        )
    return notes


def stand_in_flags(subject: Subject, gradient: Gradient) -> list[Flag]:
    """Compares a stand-in gradient with the full one on a few samples.

    Args:
        subject: The purified classifier.
        gradient: The gradient it is attacked with.
    """
    if gradient == "full":
        return []
    start = subject.start("", list(subject.ids[:CHECKED]))
    made = cast("Purified", subject.module).purifier
    found = _gradient(subject, start)
    made.gradient = "full"
    try:
        full = _gradient(subject, start)
    finally:
        made.gradient = gradient
    cosine = float(F.cosine_similarity(found.flatten(1), full.flatten(1)).mean())
    signs = float((found.sign() == full.sign()).double().mean())
    message = (
        f"the attack sees the {gradient} gradient of the purifier: on {len(full)} samples its"
        f" cosine with the full one is {cosine:.3f}, and {signs:.1%} of the signs agree"
    )
    fix = "evaluate with --purify-gradient full, at least on a part of the samples"
    return [Flag(code="stand-in-gradient", message=message, fix=fix, severity="doubtful")]


def _gradient(subject: Subject, start: Start) -> Tensor:
    assert start.y is not None, "classified samples have labels"
    with seeded(start.x.device, "stand-in"):
        _, found = Inspected(subject.module).gradient(start.x, start.y, margin)
    assert found is not None, "a purifier passes gradients"
    return found
