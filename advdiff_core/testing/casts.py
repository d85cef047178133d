"""Steps for perturbations and terms: a cast of small models, and views around what is tested."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.perturbation import Perturbation, Probe
from advdiff_core.math import norms
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.queries import View
from advdiff_core.step.scene import ROOTS
from advdiff_core.step.step import TrainStep
from advdiff_core.testing import bench
from advdiff_core.testing.bench import World
from advdiff_core.testing.parts import BenchCritic, BenchNet, BenchShift, BenchTarget
from advdiff_core.testing.steps import Model, Moved, Stage, build_stage
from advdiff_core.testing.subject import Subject, references
from advdiff_core.types import Budget, Noised

__all__ = [
    "Asked",
    "GradientWatch",
    "Shot",
    "ask",
    "critic",
    "named_kind",
    "perturbed",
    "shoot",
    "stage_of",
    "term_stage",
]

KINDS = ("denoiser", "classifier", "discriminator", "alignment_target")
#: Words in a role's name that tell its kind; the others are tried after it.
HINTS = {
    "judge": "discriminator", "critic": "discriminator", "disc": "discriminator",
    "target": "alignment_target", "encoder": "alignment_target", "classif": "classifier",
}  # fmt: skip
#: Words in the name of a role that nobody trains.
FROZEN = ("teacher", "target", "frozen", "reference")
#: Casts tried per root before a component counts as not fitting.
MAX_CASTS = 64


def net(world: World, *, names: tuple[str, ...] = (), outputs: int = 0, flat: bool = False) -> Any:
    """A stand-in network whose tap answers to every name in `names`."""
    settings = _net_settings(names, outputs, flat=flat)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BenchNet(settings, Build(data=world.data))


def _net_settings(names: tuple[str, ...], outputs: int, *, flat: bool) -> Any:
    cls: Any = BenchNet.Settings
    return cls(names=("hidden", *names), outputs=outputs, flat=flat)


def worlds_with_roles(subject: Subject) -> Iterator[World]:
    """Worlds with a root and a kind for each role that the settings name, likely ones first."""
    names = dict.fromkeys([*references(subject.settings, "role"), "student"])
    views = set(references(subject.settings, "view"))
    roots = [root for root in ROOTS if root in views] or list(ROOTS)
    for world in subject.candidates():
        for root in roots:
            usual = "denoiser" if root == "clean" else "classifier"
            kinds = [_likely_first(name, usual) for name in names]
            for chosen in itertools.islice(itertools.product(*kinds), MAX_CASTS):
                roles = dict(zip(names, chosen, strict=True))
                yield evolve(world, name=f"{world.name}/{root}", root=root, roles=roles)


def critic(world: World) -> Any:
    """A stand-in discriminator in eval mode, with no gradient to its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BenchCritic(None, Build(data=world.data)).eval().requires_grad_(False)


def named_kind(name: str) -> str:
    """Kind of network that the name of a role tells; "" if it tells none."""
    return next((kind for word, kind in HINTS.items() if word in name), "")


def _likely_first(name: str, usual: str) -> list[str]:
    first = named_kind(name) or usual
    return [first, *(kind for kind in KINDS if kind != first)]


def _models(
    subject: Subject, world: World, *, parametrization: str, flat: bool, frozen: bool
) -> dict[str, Model]:
    made = {
        name: _model(name, kind, subject.words, world, parametrization, flat)
        for name, kind in world.roles.items()
    }
    made = {name: evolve(model, frozen=frozen or model.frozen) for name, model in made.items()}
    return {**made, **subject.example.models}


def _model(  # noqa: PLR0913 - what a role may be.
    name: str, kind: str, words: tuple[str, ...], world: World, parametrization: str, flat: bool
) -> Model:
    frozen = any(word in name for word in FROZEN)
    if kind == "discriminator":
        return Model(BenchCritic, kind=kind, frozen=frozen)
    if kind == "alignment_target":
        return Model(BenchTarget, kind=kind, frozen=True)
    classes = world.data.classes if kind == "classifier" else 0
    settings = _net_settings(words, classes, flat=flat)
    worn = parametrization if kind == "denoiser" else "none"
    return Model(BenchNet, settings, parametrization=worn, frozen=frozen)


def stage_of(  # noqa: PLR0913 - the parts of a recipe that vary.
    subject: Subject,
    world: World,
    *,
    views: Mapping[str, Moved],
    parametrization: str = "eps",
    schedule: str = "vp-linear",
    seed: int = 0,
    flat: bool = False,
    frozen: bool = False,
) -> Stage:
    """A stage with these views and the world's roles, `frozen` or as their names say."""
    models = _models(subject, world, parametrization=parametrization, flat=flat, frozen=frozen)
    return build_stage(
        data=world.data, models=models, views={**subject.example.views, **views},
        schedule=bench.schedule(schedule), times=subject.example.times, terms=subject.terms,
        seed=seed,
    )  # fmt: skip


def perturbed(subject: Subject, world: World, **how: Any) -> Stage:
    """A stage whose view "adv" is moved by the component; `how` as in `stage_of`."""
    moved = Moved(world.root, subject.component, subject.settings)
    return stage_of(subject, world, views={"adv": moved}, **how)


def perturbation_of(stage: Stage) -> Perturbation:
    """What moves the view "adv"."""
    found = stage.scene.views["adv"].perturbation
    assert found is not None
    return found


@frozen(eq=False)
class Shot:
    """One perturbed view.

    Attributes:
        step: The step it belongs to.
        plan: Its plan.
        base: The view that was moved.
        view: The moved view.
    """

    step: TrainStep
    plan: Plan
    base: Noised
    view: Noised


def shoot(  # noqa: PLR0913 - the coordinates of a batch.
    stage: Stage,
    world: World,
    *,
    size: int,
    seed: int = 0,
    rows: slice = slice(None),
    index: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Shot:
    """Perturb rows of a batch of `size` as step number `index` would."""
    for role in stage.scene.roles.values():
        role.module.to(dtype)
    x, y = bench.batch_of(world, seed, size, dtype=dtype)
    phase = Phase(player="student", roles=frozenset({"student"}), needs=(View("adv"),))
    plan = Plan([phase], stage.scene)
    start = range(size)[rows].start
    labels = None if y is None else y[rows]
    step = stage.step(plan, x[rows], labels, index=index, start=start, total=size)
    step.enter(phase, [])
    view = step.get(View("adv"))
    base = stage.scene.views["adv"].base
    assert base is not None
    # Asked after the search: an edit in place shows.
    return Shot(step, plan, step._memo[View(base)], view)


class GradientWatch:
    """Notes the first gradient that a search asks for, and where it began and ended.

    Args:
        perturbation: Its search is watched from now on.

    Attributes:
        gradient: The first gradient [B, ...].
        began: Where it was taken [B, ...].
        ended: What the search proposed, projected [B, ...].
    """

    def __init__(self, perturbation: Perturbation) -> None:
        self.gradient: Tensor | None = None
        self.began: Tensor | None = None
        self.ended: Tensor | None = None
        search = perturbation.search

        def watched(noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
            found = search(noised, budget, _WatchedProbe(probe, self), rng)
            radius = budget.radius
            self.ended = norms.project(found.detach(), norm=budget.norm, radius=radius)
            return found

        perturbation.search = watched  # type: ignore[method-assign]


class _WatchedProbe:
    """A probe that tells a watch of its first gradient."""

    def __init__(self, probe: Probe, watch: GradientWatch) -> None:
        self.probe, self.watch = probe, watch
        self.base, self.step, self.at = probe.base, probe.step, probe.at

    def gradient(self, objective: Tensor, delta: Tensor) -> Tensor:
        """The gradient [B, ...] of `objective` [B] towards `delta` [B, ...], noted."""
        found = self.probe.gradient(objective, delta)
        if self.watch.gradient is None:
            self.watch.gradient, self.watch.began = found.clone(), delta.detach().clone()
        return found


def term_stage(
    subject: Subject, world: World, *, parametrization: str = "eps", schedule: str = "vp-linear",
    seed: int = 0,
) -> Stage:  # fmt: skip
    """A stage with every role and view that the term's settings name."""
    names = set(references(subject.settings, "view")) - {*ROOTS, *subject.example.views}
    views = {name: Moved(world.root, BenchShift) for name in sorted(names)}
    return stage_of(
        subject, world, views=views, parametrization=parametrization, schedule=schedule, seed=seed
    )


@frozen(eq=False)
class Asked:
    """A term that was asked for its loss.

    Attributes:
        term: The term.
        step: The step it read.
        loss: What it returned.
    """

    term: LossTerm
    step: TrainStep
    loss: Tensor


def ask(  # noqa: PLR0913 - the coordinates of a batch.
    subject: Subject,
    world: World,
    *,
    size: int,
    seed: int = 0,
    rows: slice = slice(None),
    dtype: torch.dtype = torch.float64,
    given: Mapping[Any, Any] | None = None,
    **how: Any,
) -> Asked:
    """Ask the component for its loss on rows of a batch of `size`.

    Args:
        subject: The term.
        world: Where it is asked.
        size: Samples of the whole batch.
        seed: Seed of the batch.
        rows: Rows it is asked for.
        dtype: Type of data and weights.
        given: Values of queries, instead of computing them.
        how: As in `term_stage`.
    """
    stage = term_stage(subject, world, **how)
    term = subject.build(evolve(stage.build, path="terms.tested")).to(dtype)
    x, y = bench.batch_of(world, seed, size, dtype=dtype)
    step = term_step(
        stage, term, x[rows], None if y is None else y[rows], range(size)[rows].start, size
    )
    step._memo.update(given or {})
    return Asked(term, step, term(step))


def term_step(  # noqa: PLR0913 - the coordinates of a batch.
    stage: Stage, term: LossTerm, x: Tensor, y: Tensor | None, start: int, total: int
) -> TrainStep:
    """The step on `x` [B, ...] of a player with this term alone, which trains every free role."""
    roles = frozenset(name for name, role in stage.scene.roles.items() if role.owner is not None)
    for role in stage.scene.roles.values():
        role.module.to(x.dtype)
    phase = Phase(player="tested", roles=roles, needs=term.needs)
    step = stage.step(Plan([phase], stage.scene), x, y, start=start, total=total)
    step.enter(phase, [])
    return step


def step_like(step: TrainStep, x: Tensor, y: Tensor | None) -> TrainStep:
    """A step of the same scene and plan on other samples `x` [B, ...] and labels `y` [B]."""
    made = TrainStep(step.scene, step.plan, x, y, step.place)
    made.enter(step.plan.phases[0], [])
    return made
