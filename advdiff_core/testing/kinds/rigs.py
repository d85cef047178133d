"""How components of each kind are built and tried out once, before any law is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from advdiff_core.draws import BLOCK
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build, ModelInfo, ViewInfo
from advdiff_core.interfaces.sampler import Sampler
from advdiff_core.testing import bench, casts
from advdiff_core.testing.bench import SCHEDULES, World
from advdiff_core.testing.evaluation import BenchEvaluation
from advdiff_core.testing.subject import Subject, references, worlds_or_skip
from advdiff_core.testing.victims import ClassifierVictim
from advdiff_core.types import Augmented, Budget

__all__ = ["LENGTH", "TIMES", "Rig", "rig", "worlds"]

#: Images of the run that laws of times are told of.
LENGTH = 1_000_000


class Rig:
    """How components of a kind are built and tried out.

    Args:
        path: Where a recipe has them.
        everywhere: Whether the kind of data matters to them.
    """

    def __init__(self, path: str, *, everywhere: bool = True) -> None:
        self.path, self.everywhere = path, everywhere

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """What the component is told of the others."""
        return subject.plain_build(world, seed=seed, path=self.path)

    def build(self, subject: Subject, world: World, seed: int = 0) -> Any:
        """The component, built for a world."""
        return subject.build(self.told(subject, world, seed))

    def trial(self, subject: Subject, world: World) -> None:
        """Build it and use it once; whatever this raises is why it does not fit the world."""
        self.build(subject, world)

    def candidates(self, subject: Subject) -> Iterable[World]:
        """Worlds to try."""
        return subject.candidates() if self.everywhere else subject.candidates()[:1]

    def fit(self, subject: Subject) -> tuple[tuple[World, ...], Mapping[str, str]]:
        """Worlds that fit, and why others do not."""
        return subject.fit(lambda world: self.trial(subject, world), self.candidates(subject))


class BackboneRig(Rig):
    """Networks: run once."""

    def trial(self, subject: Subject, world: World) -> None:
        """One forward of a batch of two in eval mode."""
        net = self.build(subject, world).eval()
        x, y = bench.batch_of(world, 0, 2)
        with torch.no_grad():
            net(x, torch.full((2,), 100.0), y)


class FrozenRolesRig(Rig):
    """Components whose settings name roles: small networks that nobody trains."""

    def candidates(self, subject: Subject) -> Iterable[World]:
        """Every kind that the roles it names may be of."""
        roles = dict.fromkeys(references(subject.settings, "role"))
        for world in subject.candidates():
            for kind in ("denoiser", "classifier") if roles else ("",):
                name = f"{world.name}/{kind}" if kind else world.name
                yield evolve(world, name=name, roles=dict.fromkeys(roles, kind))

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """Data, schedule, and the networks of the roles it names."""
        if not world.roles:
            return super().told(subject, world, seed)
        staged = casts.stage_of(subject, world, views={}, seed=seed, frozen=True)
        return evolve(staged.build, path=self.path)


class DiscriminatorRig(FrozenRolesRig):
    """Discriminators: run once."""

    def trial(self, subject: Subject, world: World) -> None:
        """One forward of a batch of two in eval mode."""
        net = self.build(subject, world).eval()
        x, y = bench.batch_of(world, 0, 2)
        with torch.no_grad():
            net(x, reference=x, labels=y)


class TargetRig(FrozenRolesRig):
    """Alignment targets: run once."""

    def trial(self, subject: Subject, world: World) -> None:
        """One forward of a batch of two, without gradient, in eval mode."""
        net = self.build(subject, world).eval()
        x, y = bench.batch_of(world, 0, 2)
        with torch.no_grad():
            net(x, y, bench.draws(0, 2))


class AttackRig(Rig):
    """Attacks: run once on a classifier."""

    def trial(self, subject: Subject, world: World) -> None:
        """One search on three classes."""
        attack = self.build(subject, world)
        x = bench.batch_of(world, 0, 2).x
        victim = ClassifierVictim(world, classes=3, size=2)
        budget = Budget(attack.norms[0], 0.1)
        attack.run(victim, x, budget, domain=world.data.domain, rng=bench.draws(0, 2))


class AugmentationRig(Rig):
    """Augmentations: applied once."""

    def trial(self, subject: Subject, world: World) -> None:
        """One block of samples."""
        x, y = bench.batch_of(world, 0, BLOCK)
        self.build(subject, world).augment(Augmented(x, y), bench.draws(0, BLOCK))


class SamplerRig(Rig):
    """Samplers: built for the first schedule they accept."""

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """Schedule and data."""
        return self.told_of(subject, world, "vp-linear", seed)

    def told_of(self, subject: Subject, world: World, name: str, seed: int = 0) -> Build:
        """What a sampler is told on a named schedule."""
        known = bench.schedule(name)
        return evolve(subject.plain_build(world, seed=seed, path=self.path), schedule=known)

    def sampler(self, subject: Subject, world: World, name: str) -> Sampler:
        """The sampler on a named schedule."""
        made: Sampler = subject.build(self.told_of(subject, world, name))
        return made

    def trial(self, subject: Subject, world: World) -> None:
        """Its grid."""
        self.build(subject, world).grid()


class TimesRig(Rig):
    """Laws of training times: built for the first schedule they accept."""

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """Data, the first schedule that the law can be built for, and the length of a run."""
        plain = subject.plain_build(world, seed=seed, path=self.path)
        builds = [evolve(plain, schedule=bench.schedule(name), images=LENGTH) for name in SCHEDULES]
        for build in builds:
            try:
                subject.build(build)
            except RecipeError:
                continue
            return build
        return builds[0]

    def trial(self, subject: Subject, world: World) -> None:
        """One time."""
        self.build(subject, world).draw(torch.tensor([0.5], dtype=torch.float64), 0)


class MetricRig(Rig):
    """Metrics: roles they name are small networks, denoisers or else classifiers.

    Where that does not do, those whose names say so are discriminators.
    """

    def candidates(self, subject: Subject) -> Iterable[World]:
        """Every kind of data, with either kind of network."""
        critics = {
            name: "discriminator"
            for name in references(subject.settings, "role")
            if casts.named_kind(name) == "discriminator"
        }
        for others in [{}, critics] if critics else [{}]:
            for kind in ("denoiser", "classifier"):
                for world in subject.candidates():
                    yield evolve(world, roles={"student": kind, **others})

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """Data, and every role as a backbone or discriminator."""
        worn = "none" if world.roles.get("student") == "classifier" else "eps"
        info = ModelInfo(
            kind="backbone", frozen=True, parametrization=worn, sigma_data=1.0,
            taps=casts.net(world, names=subject.words).taps,
        )  # fmt: skip
        critic = ModelInfo(kind="discriminator", frozen=True)
        names = {
            name: critic if world.roles.get(name) == "discriminator" else info
            for name in dict.fromkeys([*references(subject.settings, "role"), "student"])
        }
        return evolve(subject.plain_build(world, seed=seed, path=self.path), models=names)

    def evaluation(
        self, subject: Subject, world: World, samples: Tensor, data: Tensor, folder: Path
    ) -> Any:
        """What a metric reads: samples [N, ...], and data [M, ...] that are clean."""
        classes = world.data.classes if world.roles.get("student") == "classifier" else 0
        module = casts.net(world, names=subject.words, outputs=classes).eval()
        critics = {
            name: casts.critic(world) for name, kind in world.roles.items()
            if kind == "discriminator"
        }  # fmt: skip
        return BenchEvaluation(
            world, module, samples=samples, data=data, folder=folder, critics=critics
        )

    def trial(self, subject: Subject, world: World) -> None:
        """Numbers of a few samples."""
        made = self.build(subject, world)
        x, other = (bench.batch_of(world, seed, 24).x for seed in (0, 1))
        made.compute(self.evaluation(subject, world, x, other, subject.folder))


class PerturbationRig(Rig):
    """Perturbations: on views of noised samples and of images."""

    def candidates(self, subject: Subject) -> Iterable[World]:
        """Both roots, and every kind that the roles it names may be of."""
        subject.settings  # noqa: B018 - a fault of the settings is no reason of a world.
        return casts.worlds_with_roles(subject)

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """What the core tells a perturbation: data, schedule, models, the views below it."""
        staged = casts.stage_of(subject, world, views={}, seed=seed)
        infos = {**staged.build.views, "adv": ViewInfo(base=world.root, root=world.root)}
        return evolve(staged.build, views=infos, path="views.adv.perturb")

    def trial(self, subject: Subject, world: World) -> None:
        """One perturbed view."""
        casts.shoot(casts.perturbed(subject, world), world, size=2)


class TermRig(Rig):
    """Loss terms: asked once."""

    def candidates(self, subject: Subject) -> Iterable[World]:
        """Both roots, and every kind that the roles it names may be of."""
        subject.settings  # noqa: B018 - a fault of the settings is no reason of a world.
        return casts.worlds_with_roles(subject)

    def told(self, subject: Subject, world: World, seed: int) -> Build:
        """What the core tells a term: data, schedule, models, views."""
        return evolve(casts.term_stage(subject, world, seed=seed).build, path=self.path)

    def trial(self, subject: Subject, world: World) -> None:
        """One loss."""
        casts.ask(subject, world, size=2)


TIMES = TimesRig("schedule.density.sampler", everywhere=False)

RIGS: Mapping[str, Rig] = {
    "alignment_target": TargetRig("models.target"),
    "attack": AttackRig("attack"),
    "augmentation": AugmentationRig("data.augment.0"),
    "backbone": BackboneRig("models.student"),
    "corruption": Rig("data.corrupt.0"),
    "dataset": Rig("data", everywhere=False),
    "discriminator": DiscriminatorRig("models.judge"),
    "loss_term": TermRig("terms.tested"),
    "metric": MetricRig("evaluate.metrics.0"),
    "noise_schedule": Rig("schedule", everywhere=False),
    "optimizer": Rig("players.student.optimizer", everywhere=False),
    "perturbation": PerturbationRig("views.adv.perturb"),
    "sampler": SamplerRig("sample"),
    "time_sampler": TIMES,
}


def rig(subject: Subject) -> Rig:
    """How components of the subject's kind are built."""
    return RIGS[subject.kind]


def worlds(subject: Subject) -> SearchStrategy[World]:
    """Worlds that the component fits.

    Raises:
        NotApplicable: If it fits none.
    """
    return st.sampled_from(worlds_or_skip(rig(subject).fit(subject)[0]))
