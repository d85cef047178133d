"""Terms of the discriminator's player: telling real from generated, and R1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from attrs import evolve, frozen
from torch import Tensor

from advdiff_adt.judging import JudgeSettings, scores_of
from advdiff_adt.losses import discriminator_loss
from advdiff_adt.rollout import domain_of, images_of, real_of
from advdiff_adt.rollout_settings import RolloutSettings
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Query, Setup, Step
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Scores

__all__ = ["R1", "Discriminate", "Slope"]


@settings
class OpponentSettings:
    """The key by which a discriminator's term finds the generator's."""

    of: str = setting(
        "adversarial", ref="term",
        help="term of the generator, whose keys say what is judged, by whom and how",
    )  # fmt: skip


class Discriminate(LossTerm):
    """The discriminator's loss on real images and on those of a rollout (ADT).

    What is judged stands in the keys of the generator's term: both ask for the same rollout, which
    a step makes once. Real pair: an image and itself under two augmentations; generated pair: what
    the rollout made of an image and that image (arXiv 2504.11423 by secondary sources: FOUND; the
    form of the loss is UNKNOWN, `loss` of the generator's term).
    """

    source = "ADT (arXiv 2504.11423, sections 3.2 and 3.3, by secondary sources)"

    @settings
    class Settings(OpponentSettings):
        """Keys of `use = "discriminate"`."""

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.keys, pair = _opponent(settings.of, build)
        self.real, self.fake = pair["real"], pair["generated"]
        self.needs = (self.real, self.fake)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        real, fake = step.get(self.real), step.get(self.fake)
        return discriminator_loss(self.keys.loss, real, fake, scale=self.keys.scale)


class R1(LossTerm):
    """Half the squared gradient of the score towards its image: R1, or R2.

    Mescheder et al. (2018, eq. 9) at real images, (eq. 10) at generated ones; the term's weight is
    their gamma. It is the sum over pixels, of the mean over a sample's scores. Images are those
    that the discriminator sees, augmented.
    """

    @settings
    class Settings(OpponentSettings):
        """Keys of `use = "r1"`."""

        at: Literal["real", "generated"] = setting(
            "real", help="where: R1 at real, R2 at generated"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        keys, pair = _opponent(settings.of, build)
        if not build.models[keys.judge].double_backward:
            _refuse_single(keys.judge, build)
        self.slope = Slope(pair[settings.at])
        self.needs = (self.slope,)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return step.get(self.slope) / 2


@frozen
class Slope(Query[Tensor]):
    """Squared norm [B] of the gradient of scores towards the images, which a backward can pass.

    Attributes:
        scores: The scores; the mean over those of a sample is taken.
    """

    scores: Scores

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The images and the reference."""
        return self.scores.needs(setup)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One forward of the discriminator."""
        del setup
        return {self.scores.role: 1}

    def input_backwards(self, setup: Setup) -> Mapping[str, int]:
        """One backward towards its input."""
        del setup
        return {self.scores.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Take the gradient, with a graph."""
        assert self.scores.of is not None
        x = step.get(self.scores.of).detach().requires_grad_()
        reference = None if self.scores.reference is None else step.get(self.scores.reference)
        with torch.enable_grad():
            network = step.network(self.scores.role)
            scores = network.score(x, reference=reference, labels=step.y)
            total = scores.reshape(len(x), -1).mean(1).sum()
            (slope,) = torch.autograd.grad(total, x, create_graph=True)
        return slope.square().flatten(1).sum(1)


def _opponent(name: str, build: Build) -> tuple[JudgeSettings, dict[str, Scores]]:
    """Settings of the generator's term, and the scores of real and generated images.

    Raises:
        RecipeError: R10 if that term has no rollout that is judged.
    """
    spec = build.terms.get(name)
    keys = None if spec is None else spec.settings
    if not (isinstance(keys, RolloutSettings) and isinstance(keys, JudgeSettings)):
        known = [n for n, one in build.terms.items() if isinstance(one.settings, JudgeSettings)]
        found = "no term" if spec is None else f"{spec.use!r}"
        fix = f"name one of: {', '.join(known)}" if known else "add a term adversarial"
        refuse(build, "of", f"{name!r} is {found}, wanted one that has a rollout judged", fix)
    # Faults of its keys are faults of its table.
    told = evolve(build, path=f"terms.{name}")
    both = cast("Any", keys)
    real, domain = real_of(both, told), domain_of(both, told)
    judged = {"real": real, "generated": images_of(both, told)}
    pair = {what: scores_of(both, told, of, real, domain=domain) for what, of in judged.items()}
    return both, pair


def _refuse_single(judge: str, build: Build) -> None:
    """Refuse a discriminator without second derivatives, naming the networks that lack them."""
    names = [
        name for name, info in build.models.items()
        if info.kind == "backbone" and info.frozen and not info.double_backward
    ]  # fmt: skip
    message = f"R1 needs second derivatives, and model {judge!r} has none"
    if not names:
        refuse(build, "of", message, f"write compile = false in models.{judge}, or drop this term")
    what = f"{message}: fused attention or compiling takes them from {', '.join(names)}"
    mend = f'write attention_kernel = "math" and compile = false in models.{names[0]}'
    refuse(build, "of", what, f"{mend}, or take another discriminator")
