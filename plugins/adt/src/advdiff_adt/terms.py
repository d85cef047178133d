"""What tunes a generator through its own samples: a judge, or a reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advdiff_adt.judging import JudgeSettings, scores_of
from advdiff_adt.losses import generator_loss
from advdiff_adt.rollout import domain_of, images_of, real_of
from advdiff_adt.rollout_settings import RolloutSettings
from advdiff_core import Build, ContractError, LossTerm, Query, Scores, Step
from advdiff_core.interfaces.query import Setup
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.settings import setting, settings

__all__ = ["Adversarial", "Rated", "Reward"]


class Adversarial(LossTerm):
    """A generator's loss by what a discriminator says of its own samples (ADT).

    FOUND (arXiv 2504.11423, by secondary sources): samples of the real inference path, started at
    noised data; `L_G = L_adv + lambda L_diff` with lambda = 0.5, here the term `denoise` with that
    weight; the generator acts in every fifth step, `every = 5` of its player. DERIVED:
    `L_adv = -D(x0_hat, x0)`, with the data that the sample started from as reference. The form of
    the loss is UNKNOWN in the paper: hinge is our default, and for cosines the same as linear.
    The keys of the rollout are these: `discriminate` reads them here.
    """

    source = "ADT (arXiv 2504.11423, by secondary sources)"

    @settings
    class Settings(RolloutSettings, JudgeSettings):
        """Keys of `use = "adversarial"`."""

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        images, real = images_of(settings, build), real_of(settings, build)
        domain = domain_of(settings, build)
        self.scores = scores_of(settings, build, images, real, domain=domain)
        self.needs = (self.scores,)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        keys = self.settings
        return generator_loss(keys.loss, step.get(self.scores), scale=keys.scale)


@frozen
class Rated(Query[Tensor]):
    """Logits [B, K] of a classifier for images made by another query, which gradients reach.

    Attributes:
        role: The classifier.
        of: Query of the images.
    """

    role: str
    of: Query[Tensor]

    def needs(self, setup: Setup) -> tuple[Query[Any], ...]:
        """The images."""
        del setup
        return (self.of,)

    def forwards(self, setup: Setup) -> Mapping[str, int]:
        """One."""
        del setup
        return {self.role: 1}

    def compute(self, step: Step) -> Tensor:
        """Run it on the images."""
        return step.network(self.role).classify(step.get(self.of), through=True).value


class Reward(LossTerm):
    """A generator's loss by a differentiable reward of its own samples (DRTune, DRaFT, AlignProp).

    Minus the reward, of the same rollout as `adversarial`: with `gradient = "drtune"`,
    `choice = "spaced"` and `early_stop` it is DRTune (arXiv 2405.00760), with "last-k" DRaFT-K
    (Clark et al., 2024; "full": DRaFT), with a random truncation AlignProp (Prabhudesai et al.,
    2023), with the last step of an early stop ReFL (Xu et al., 2023).
    """

    source = "DRTune (arXiv 2405.00760), DRaFT (arXiv 2309.17400), AlignProp (arXiv 2310.03739)"

    @settings
    class Settings(RolloutSettings):
        """Keys of `use = "reward"`."""

        scorer: str = setting(
            "scorer", ref="role", help="who rewards: a discriminator or a classifier, often frozen"
        )
        reads: Literal["auto", "score", "label", "class"] = setting(
            "auto", help="what of it: scores of a discriminator, or a classifier's log-probability "
            "of the sample's label, or of one class; auto: score, or label",
        )  # fmt: skip
        wanted: int = setting(
            0, ge=0, applies=("reads", ("class",)), help="the class that is rewarded"
        )
        ceiling: float | None = setting(
            None, help="reward beyond which there is nothing to gain; none by default"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.reads = _reads(settings, build)
        images = images_of(settings, build)
        self.rating: Query[Tensor] = Rated(settings.scorer, images)
        if self.reads == "score":
            self.rating = Scores(settings.scorer, images)
        self.needs = (self.rating,)

    def forward(self, step: Step) -> Tensor:
        """Minus the reward of each sample [B], or what it lacks to the ceiling."""
        reward = self._reward(step.get(self.rating), step.y)
        ceiling = self.settings.ceiling
        return -reward if ceiling is None else F.relu(ceiling - reward)

    def _reward(self, rating: Tensor, y: Tensor | None) -> Tensor:
        if self.reads == "score":
            return rating.reshape(len(rating), -1).mean(1)
        logs = F.log_softmax(rating, dim=1)
        if self.reads == "class":
            return logs[:, self._wanted(logs.shape[1])]
        assert y is not None, "checked against the dataset's description"
        if y.dim() == 2:
            # Labels of mixed samples are probabilities.
            return (y.to(logs) * logs).sum(1)
        return logs.gather(1, y[:, None].long())[:, 0]

    def _wanted(self, classes: int) -> int:
        wanted = int(self.settings.wanted)
        if wanted >= classes:
            message = f"class {wanted} of a scorer that knows {classes}"
            where = f"{self.build.path}.wanted"
            raise ContractError(message, where=where, fix=f"write a class from 0 to {classes - 1}")
        return wanted


def _reads(keys: Reward.Settings, build: Build) -> str:
    """What is read of the scorer.

    Raises:
        RecipeError: R10 if it has nothing of the kind.
    """
    model = build.models.get(keys.scorer)
    judges = model is not None and model.kind == "discriminator"
    found = ("score" if judges else "label") if keys.reads == "auto" else keys.reads
    if model is None:
        return found
    classifies = model.kind == "backbone" and model.parametrization == "none"
    if not (judges if found == "score" else classifies):
        wanted = "discriminator" if found == "score" else "classifier"
        message = f"{found!r} is read of a {wanted}, and model {keys.scorer!r} is none"
        refuse(build, "scorer" if keys.reads == "auto" else "reads", message, f"name a {wanted}")
    classes = build.data.classes if build.data is not None else 0
    if found == "label" and build.data is not None and not classes:
        fix = 'write reads = "class", or use a dataset with classes'
        refuse(build, "reads", "the data have no labels to be rewarded for", fix)
    return found
