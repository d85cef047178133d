"""What an evaluation attacks: inputs, victims, and what comes of a stored input."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.draws import SampleDraws, SeedDraws
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.robust.checker import judge_logits
from advdiff_core.engine.robust.job import AttackJob
from advdiff_core.engine.robust.samples import Chosen, choose_samples
from advdiff_core.engine.robust.victims import (
    DenoiserVictim,
    SamplerVictim,
    average_of,
    classifier,
    network,
    role_of,
)
from advdiff_core.errors import DataError, UsageError
from advdiff_core.interfaces.attack import Victim
from advdiff_core.interfaces.classifier import ClassifierVictim
from advdiff_core.interfaces.sampler import Sampler, all_steps
from advdiff_core.types import Domain, expand

__all__ = ["Outcome", "Start", "Subject", "make_subject"]


@frozen(kw_only=True, eq=False)
class Start:
    """Clean inputs.

    Attributes:
        x: Inputs [B, ...], on the network's device.
        y: Labels [B] there, or None.
        ids: Identity of each.
    """

    x: Tensor
    y: Tensor | None
    ids: tuple[int, ...]


@frozen(kw_only=True, eq=False)
class Outcome:
    """What comes of stored inputs, by a fresh forward.

    Attributes:
        score: 1 for a misclassified sample and 0 for another, or a denoiser's objective [B],
            float64; NaN where a denoiser's output is not finite.
        finite: Samples whose outputs are finite [B], bool.
    """

    score: Tensor
    finite: Tensor


class Subject(Protocol):
    """What is attacked."""

    @property
    def cases(self) -> tuple[str, ...]:
        """What is attacked one after the other: "", or noise levels."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Identity of each sample."""

    @property
    def module(self) -> nn.Module:
        """The network."""

    @property
    def domain(self) -> Domain | None:
        """Valid range of inputs; None for noised ones."""

    @property
    def verdicts(self) -> bool:
        """Whether samples are right or wrong, or have an objective that grows."""

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it, for the record."""

    @property
    def notes(self) -> list[str]:
        """What whoever reads the numbers has to know."""

    def start(self, case: str, ids: list[int]) -> Start:
        """Clean inputs."""

    def victim(self, case: str, start: Start) -> Victim:
        """The victim of these inputs."""

    def outcome(self, case: str, start: Start, x: Tensor) -> Outcome:
        """What comes of the inputs `x` [B, ...] in place of the clean ones."""


def make_subject(job: AttackJob, experiment: Experiment) -> Subject:
    """What a job attacks, with copies of the networks that leave the run's own alone.

    Raises:
        UsageError: If the run has no such network, or its data do not fit.
    """
    denoiser = job.objective != "classify"
    role = role_of(experiment, job.role, denoiser=denoiser)
    ema = average_of(experiment, role, job.ema)
    facts = {"objective": job.objective, "role": role, "ema": ema}
    if not denoiser:
        chosen = choose_samples(job, experiment, labelled=True)
        made = _Classified(
            module=classifier(experiment, role, ema), chosen=chosen, experiment=experiment,
            facts={**facts, "data": chosen.facts}, notes=_few(chosen),
        )  # fmt: skip
        return made if job.purify is None else _purified(made, job, experiment)
    module = network(experiment, role, ema)
    if job.objective == "sample-distance":
        return _sampled(job, experiment, role, module, facts)
    chosen = choose_samples(job, experiment, labelled=False)
    return _Denoised(
        module=module, chosen=chosen, experiment=experiment, job=job, role=role,
        cases=_cases(job, experiment), facts={**facts, "data": chosen.facts}, notes=chosen.notes,
    )  # fmt: skip


def _purified(made: Subject, job: AttackJob, experiment: Experiment) -> Subject:
    # Here, since it wraps what is made here.
    from advdiff_core.engine.robust.purified import purified

    return purified(made, job, experiment)


def _few(chosen: Chosen) -> list[str]:
    """The notes, and one more if some classes do not occur."""
    labels: set[int] = set()
    for first in range(0, len(chosen.ids), 256):
        batch = chosen.source.clean(torch.tensor(chosen.ids[first : first + 256]))
        labels |= set() if batch.y is None else set(batch.y.tolist())
    known = chosen.source.info.classes
    if len(labels) >= min(known, len(chosen.ids)):
        return chosen.notes
    found = f"the {len(chosen.ids):,} samples hold {len(labels)} of {known} classes"
    return [*chosen.notes, f"{found}; --pick spread takes them from all over the data"]


def _cases(job: AttackJob, experiment: Experiment) -> tuple[str, ...]:
    schedule = experiment.scene.schedule
    assert schedule is not None, "a run with a denoiser has a schedule"
    low, high = float(schedule.t_min), float(schedule.t_max)
    levels = tuple(job.t) or ((low + high) / 2,)
    for t in levels:
        if not low <= t <= high:
            message = f"found {t:g}, the schedule's time goes from {low:g} to {high:g}"
            raise UsageError(message, where="--t", fix="choose a time between them")
    return tuple(f"t={t:g}" for t in levels)


@frozen(kw_only=True, eq=False)
class _Classified:
    module: nn.Module
    chosen: Chosen
    experiment: Experiment
    facts: dict[str, Any]
    notes: list[str]
    cases: tuple[str, ...] = ("",)
    verdicts: bool = True

    @property
    def ids(self) -> tuple[int, ...]:
        return self.chosen.ids

    @property
    def domain(self) -> Domain | None:
        return self.chosen.source.info.domain

    def start(self, case: str, ids: list[int]) -> Start:
        del case
        batch, compute = self.chosen.batch(ids), self.experiment.scene.compute
        if batch.y is None or batch.y.dim() != 1:
            fix = "name data with one label per image"
            raise DataError("the images have no labels", code="D03", where="data", fix=fix)
        return Start(x=compute.place(batch.x), y=batch.y.to(compute.device), ids=tuple(ids))

    def victim(self, case: str, start: Start) -> Victim:
        del case
        assert start.y is not None, "classified samples have labels"
        return ClassifierVictim(network=self.module, labels=start.y)

    def outcome(self, case: str, start: Start, x: Tensor) -> Outcome:
        del case
        assert start.y is not None, "classified samples have labels"
        classes = self.module(x[:1]).shape[1] if len(x) else 0
        wrong = (start.y < 0) | (start.y >= classes)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            message = f"sample {start.ids[row]} has label {int(start.y[row])}, "
            message += f"the classifier has {classes} classes"
            raise DataError(message, code="D03", where="data", fix="name data of the same classes")
        found = judge_logits(self.module, x, start.y)
        return Outcome(score=found.broken.double(), finite=found.finite)


@frozen(kw_only=True, eq=False)
class _Denoised:
    module: nn.Module
    chosen: Chosen
    experiment: Experiment
    job: AttackJob
    role: str
    cases: tuple[str, ...]
    facts: dict[str, Any]
    notes: list[str]
    verdicts: bool = False
    domain: Domain | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return self.chosen.ids

    def _eps(self, ids: tuple[int, ...], shape: torch.Size, device: torch.device) -> Tensor:
        return SampleDraws((self.job.seed, "noise"), ids, device=device).normal(shape)

    def start(self, case: str, ids: list[int]) -> Start:
        batch, scene = self.chosen.batch(ids), self.experiment.scene
        x0, t = scene.compute.place(batch.x), self._t(case, len(ids))
        assert scene.schedule is not None, "a run with a denoiser has a schedule"
        alpha, sigma = scene.schedule.alpha(t), scene.schedule.sigma(t)
        eps = self._eps(tuple(ids), x0.shape, x0.device)
        x_t = (expand(alpha, x0) * x0 + expand(sigma, x0) * eps).float()
        y = None if batch.y is None else batch.y.to(x0.device)
        return Start(x=x_t, y=y, ids=tuple(ids))

    def _t(self, case: str, count: int) -> Tensor:
        device = self.experiment.scene.compute.device
        return torch.full((count,), float(case.removeprefix("t=")), device=device)

    def _denoise(self, x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        wear = self.experiment.scene.roles[self.role].wear
        return cast("Tensor", wear(self.module, x_t, t, y).eps)

    def victim(self, case: str, start: Start) -> Victim:
        t = self._t(case, len(start.ids))
        schedule = self.experiment.scene.schedule
        assert schedule is not None, "a run with a denoiser has a schedule"
        if self.job.objective == "denoise":
            target = self._eps(start.ids, start.x.shape, start.x.device)
        else:
            with torch.no_grad():
                target = self._denoise(start.x, t, start.y)
        return DenoiserVictim(
            denoise=self._denoise, x_t=start.x, t=t, sigma=schedule.sigma(t), y=start.y,
            objective="denoise" if self.job.objective == "denoise" else "prediction-gap",
            target=target,
        )  # fmt: skip

    def outcome(self, case: str, start: Start, x: Tensor) -> Outcome:
        return _objective(self.victim(case, start), x)


@torch.no_grad()
def _objective(victim: Victim, x: Tensor) -> Outcome:
    score = victim.loss(victim.outputs(x)).double().cpu()
    finite = score.isfinite()
    return Outcome(score=torch.where(finite, score, torch.nan), finite=finite)


def _sampled(
    job: AttackJob, experiment: Experiment, role: str, module: nn.Module, facts: dict[str, Any]
) -> Subject:
    settings = experiment.recipe.sample
    if settings is None:
        raise UsageError(
            "this recipe has no sampler", where="--objective", fix="attack another run"
        )
    if job.t:
        message = "a sampler begins at its grid's first time"
        raise UsageError(message, where="--t", fix="leave it out")
    sampler = cast("Sampler", experiment.make(settings.spec))
    told = {"sampler": settings.spec.use, "steps": len(sampler.grid()) - 1, "first_seed": 0}
    return _Sampled(
        module=module, experiment=experiment, role=role, sampler=sampler,
        ids=tuple(range(job.num or 64)), facts={**facts, **told},
    )  # fmt: skip


@frozen(kw_only=True, eq=False)
class _Sampled:
    module: nn.Module
    experiment: Experiment
    role: str
    sampler: Sampler
    ids: tuple[int, ...]
    facts: dict[str, Any]
    cases: tuple[str, ...] = ("",)
    verdicts: bool = False
    domain: Domain | None = None

    @property
    def notes(self) -> list[str]:
        return [f"the starts of {len(self.ids):,} samples are moved, by their seeds from 0 on"]

    def start(self, case: str, ids: list[int]) -> Start:
        del case
        scene = self.experiment.scene
        device = scene.compute.device
        noise = SeedDraws(ids, stream="start", device=device)
        assert scene.data is not None, "a run has data"
        assert scene.schedule is not None, "a run with a denoiser has a schedule"
        first = self.sampler.grid()[0].to(device=device, dtype=torch.float32)
        x = scene.compute.place(noise.normal((len(ids), *scene.data.shape)))
        classes = self.experiment.source.info.classes
        y = torch.tensor([one % classes for one in ids], device=device) if classes else None
        return Start(x=x * scene.schedule.sigma(first), y=y, ids=tuple(ids))

    def _sample(self, x: Tensor, y: Tensor | None, ids: tuple[int, ...]) -> Tensor:
        wear = self.experiment.scene.roles[self.role].wear
        steps = all_steps(len(self.sampler.grid()) - 1) if x.requires_grad else None
        draws = SeedDraws(ids, stream="steps", device=x.device)
        return self.sampler.sample(
            lambda x_t, t: wear(self.module, x_t, t, y), x, draws,
            grad_steps=steps, checkpoint=steps is not None,
        ).x0  # fmt: skip

    def victim(self, case: str, start: Start) -> Victim:
        del case
        with torch.no_grad():
            target = self._sample(start.x, start.y, start.ids)
        return SamplerVictim(sample=self._sample, y=start.y, ids=start.ids, target=target)

    def outcome(self, case: str, start: Start, x: Tensor) -> Outcome:
        return _objective(self.victim(case, start), x)
