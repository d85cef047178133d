"""A student, a frozen network and who judges by it, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from advdiff_adt.siamese import Siamese
from advdiff_adt.terms import Adversarial
from advdiff_adt.terms_discriminate import Discriminate
from advdiff_toys.networks import ToyNet
from torch import Tensor, nn

from advdiff_core import Backbone, BackboneOutput, Build, DataInfo, Discriminator, Domain, TapInfo
from advdiff_core.samplers import DDIM
from advdiff_core.settings import Spec
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.step.step import TrainStep
from advdiff_core.terms import Denoise
from advdiff_core.testing import Model, Turn, build_stage
from advdiff_core.testing.steps import Stage

__all__ = ["DATA", "Eyes", "adversarial", "entered", "images", "made_of", "players", "stage"]

DATA = DataInfo(shape=(1, 8, 8), count=64, domain=Domain(-1.0, 1.0), classes=3)


class Eyes(Backbone):
    """A small encoder with a map, tokens and a vector."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 2, stride=2)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """`map` [B, 4, 8, 8], `tokens` [B, 16, 6] and `pooled` [B, 6]."""
        return {
            "map": TapInfo(width=4, size=(8, 8)),
            "tokens": TapInfo(width=6, size=(16,)),
            "pooled": TapInfo(width=6),
        }

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Features of `x` [B, 1, 8, 8]."""
        del c_noise, labels
        maps = torch.tanh(self.first(x))
        tokens = torch.tanh(self.second(maps)).flatten(2).transpose(1, 2)
        found = {"map": maps, "tokens": tokens, "pooled": tokens.mean(1)}
        features = {name: found[name] for name in taps}
        return BackboneOutput(None if stop_at else found["pooled"], features)


def images(size: int = 4, seed: int = 5) -> Tensor:
    """Images [size, 1, 8, 8] in [-1, 1], float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, *DATA.shape, generator=generator, dtype=torch.float64) * 2 - 1


def adversarial(**keys: Any) -> Spec:
    """The generator's term as a recipe names it."""
    steps = keys.pop("steps", 4)
    sampler = Spec(
        kind="sampler", use="ddim", settings=DDIM.Settings(steps=steps), component=DDIM,
        path="terms.adversarial.sampler",
    )  # fmt: skip
    settings = Adversarial.Settings(**{"sampler": sampler, "gradient_steps": 2, **keys})
    return Spec(
        kind="loss_term", use="adversarial", settings=settings, component=Adversarial,
        path="terms.adversarial",
    )  # fmt: skip


def made_of(judge: type[Discriminator] = Siamese, keys: Any = None, *, eyes: bool = True) -> Any:
    """A discriminator in float64, on `Eyes` or on pixels."""
    settings: Any = judge.Settings(**(keys or {}))  # type: ignore[attr-defined]
    models = {"encoder": Model(Eyes, parametrization="none", frozen=True)} if eyes else {}
    judged = {"discriminator": Model(judge, settings, kind="discriminator")}
    made = build_stage(data=DATA, models={**models, **judged})
    for role in made.scene.roles.values():
        role.module.double()
    return made.scene.roles["discriminator"].module


def stage(
    judge: type[Discriminator] = Siamese, keys: Any = None, *, recompute: bool = False, **term: Any
) -> Stage:
    """Roles student, encoder and discriminator; `term` are keys of the generator's term."""
    settings: Any = judge.Settings(**(keys or {}))  # type: ignore[attr-defined]
    models = {
        "student": Model(ToyNet),
        "encoder": Model(Eyes, parametrization="none", frozen=True),
        "discriminator": Model(judge, settings, kind="discriminator", recompute=recompute),
    }
    return build_stage(data=DATA, models=models, terms={"adversarial": adversarial(**term)})


def players(made: Stage, *, every: int = 1, rate: float = 0.0) -> list[Turn]:
    """The discriminator, and the student every so many steps, in the order of their names."""
    spec = made.build.terms["adversarial"]
    told = made.make(Adversarial, spec.settings, path="terms.adversarial")
    generator = {"adversarial": told, "denoise": made.make(Denoise)}
    judged = {"discriminate": made.make(Discriminate)}
    return [
        Turn("discriminator", judged, rate=rate),
        Turn("student", generator, every=every, rate=rate, weights={"denoise": 0.5}),
    ]


def entered(made: Stage, x: Tensor, role: str, *needs: Any) -> TrainStep:
    """A step on `x` [B, ...] in which the player of a role trains on these queries."""
    phase = Phase(player=role, roles=frozenset({role}), needs=needs)
    for one in made.scene.roles.values():
        one.module.to(x.dtype)
    step = made.step(Plan([phase], made.scene), x)
    step.enter(phase, [])
    return step
