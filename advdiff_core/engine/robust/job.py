"""What is to be evaluated, and the order in which it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from attrs import field, frozen

from advdiff_core.engine.assemble import Experiment
from advdiff_core.errors import UsageError
from advdiff_core.interfaces.attack import Attack
from advdiff_core.recipe.named import named_component
from advdiff_core.settings import Spec
from advdiff_core.types import Norm

__all__ = ["AttackJob", "Entry", "Objective", "Purify", "Stage", "entries", "stages"]

Objective = Literal["classify", "prediction-gap", "denoise", "sample-distance"]


@frozen(kw_only=True)
class Purify:
    """A defence that noises inputs and denoises them with another run before they are judged.

    Attributes:
        run: Folder of the run with the denoiser; its sampler and its averaged weights are used.
        t: Time that inputs are noised to, in its schedule's own range.
        steps: Steps of the sampler from there.
        gradient: What the attack sees of it; see `advdiff_core.engine.robust.purify.GRADIENTS`.
        last: Steps that "truncated" passes through.
        draws: Draws of the noise that a verdict looks at.
    """

    run: Path
    t: float
    steps: int = 10
    gradient: Literal["full", "truncated", "surrogate", "identity"] = "full"
    last: int = 1
    draws: int = 8


@frozen(kw_only=True)
class AttackJob:
    """An evaluation under attack.

    Attributes:
        attacks: Names, or tables such as `{"use": "pgd", "steps": 40}`; several are an ensemble.
        norm: Norm of the ball.
        eps: Radii, on the [0, 1] scale of the data; in their own units where they have no domain.
        objective: "classify": a classifier is to err. Of a denoiser: "prediction-gap", "denoise" at
            the noise levels `t`, or "sample-distance" of the run's sampler.
        num: Samples; all if None.
        pick: The first so many, or as many spread evenly over the data.
        data: Table of a dataset; None for the run's own with its key `split` set to `split`.
        split: Part of the run's data; None for "test" where they have such a part.
        role: Model role; None for the only one of its kind, or "student".
        ema: Number of the average of the weights; -1 for the weights as trained; None for what
            metrics use.
        t: Noise levels, in the schedule's own time.
        batch: Samples per bucket.
        seed: Seed of the attacks, and of the noise of denoisers.
        save: Adversarial inputs that are saved.
        name: Name of the folder in `RUN/robust`; a digest of everything else if empty.
        purify: A purifier in front of the classifier, or None.
    """

    attacks: Sequence[str | Mapping[str, Any]]
    norm: Norm = "linf"
    eps: Sequence[float] = (8 / 255,)
    objective: Objective = "classify"
    num: int | None = None
    pick: Literal["first", "spread"] = "first"
    data: Mapping[str, Any] | None = None
    split: str | None = None
    role: str | None = None
    ema: int | None = None
    t: Sequence[float] = ()
    batch: int = 128
    seed: int = 0
    save: int = 0
    name: str = ""
    purify: Purify | None = None

    def __attrs_post_init__(self) -> None:
        if not self.attacks:
            raise UsageError("there is no attack", where="--attack", fix="name one, such as pgd")
        if not self.eps:
            raise UsageError("there is no radius", where="--eps", fix="write --eps 8/255")
        for eps in self.eps:
            if not math.isfinite(eps) or eps < 0:
                message = f"found {eps}, wanted a finite number that is not negative"
                raise UsageError(message, where="--eps", fix="write --eps 8/255")
        if self.objective == "classify" and self.t:
            fix = "leave it out, or name an --objective of a denoiser"
            raise UsageError("a classifier has no noise level", where="--t", fix=fix)
        if self.objective != "classify" and self.purify is not None:
            fix = "leave it out, or attack a classifier"
            raise UsageError("only a classifier is purified for", where="--purify", fix=fix)

    @property
    def radii(self) -> tuple[float, ...]:
        """The radii in ascending order, each once."""
        return tuple(sorted(set(map(float, self.eps))))


@frozen(kw_only=True, eq=False)
class Entry:
    """An attack of the job, built.

    Attributes:
        name: `use`, or `use#2` for the second one of that name.
        spec: The component.
        attack: It.
        members: What is run, in order, by name: its members, or itself as "".
    """

    name: str
    spec: Spec
    attack: Attack
    members: Mapping[str, Attack] = field(factory=dict)


def entries(job: AttackJob, experiment: Experiment) -> tuple[Entry, ...]:
    """The attacks of a job.

    Raises:
        RecipeError: If one is not installed or its settings are wrong.
        UsageError: If one cannot search in the norm.
    """
    made: list[Entry] = []
    for place, one in enumerate(job.attacks):
        table = {"use": one} if isinstance(one, str) else one
        spec = named_component("attack", table, path=("attack", place), option="--attack")
        count = 1 + sum(entry.spec.use == spec.use for entry in made)
        attack = cast("Attack", experiment.make(spec))
        name = spec.use if count == 1 else f"{spec.use}#{count}"
        members = dict(attack.members()) or {"": attack}
        made.append(Entry(name=name, spec=spec, attack=attack, members=members))
        _check_norms(made[-1], job.norm)
    return tuple(made)


def _check_norms(entry: Entry, norm: Norm) -> None:
    for member, attack in {"": entry.attack, **entry.members}.items():
        if norm not in attack.norms:
            name = f"{entry.name}/{member}" if member else entry.name
            message = f"{name} cannot search in {norm}, only in {', '.join(attack.norms)}"
            fix = f"write --norm {attack.norms[0]}, or take another attack"
            raise UsageError(message, where="--norm", fix=fix)


@frozen(kw_only=True, eq=False)
class Stage:
    """One attack at one radius, over all samples it has to look at.

    Attributes:
        number: Place in the order.
        case: What is attacked: "", or a noise level of a denoiser.
        entry: Place of the attack in the job.
        name: Name in the report, for example "autoattack/square".
        member: Name of the member; "" for an attack without members.
        attack: The attack.
        eps: Radius as the job has it; None where one search answers for all of them.
        level: Samples that are left at this radius are looked at.
    """

    number: int
    case: str
    entry: int
    name: str
    member: str
    attack: Attack
    eps: float | None
    level: float


def stages(
    found: Sequence[Entry], cases: Sequence[str], radii: Sequence[float]
) -> tuple[Stage, ...]:
    """Everything that has to be run: per case and attack, radii upwards, members in their order.

    A radius of zero needs no search. An attack that looks for the smallest perturbation runs once,
    without a radius, if there is more than one.

    Args:
        found: The attacks.
        cases: What is attacked.
        radii: Radii, ascending.
    """
    positive = [eps for eps in radii if eps > 0]
    made: list[Stage] = []
    for case in cases:
        for place, entry in enumerate(found):
            for eps in positive:
                for member, attack in entry.members.items():
                    free = attack.minimal_norm and len(positive) > 1
                    if free and eps > positive[0]:
                        continue
                    made.append(
                        Stage(
                            number=len(made), case=case, entry=place, attack=attack, member=member,
                            name=f"{entry.name}/{member}" if member else entry.name,
                            eps=None if free else eps, level=eps,
                        )
                    )  # fmt: skip
    return tuple(made)
