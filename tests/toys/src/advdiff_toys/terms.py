"""Loss terms for two players, for alignment and for distillation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core import (
    Build,
    EpsHat,
    Features,
    LossTerm,
    Scores,
    Step,
    Target,
    X0Hat,
)
from advdiff_core.settings import setting, settings

__all__ = ["ToyAlign", "ToyFool", "ToyImitate", "ToyJudge"]


@settings
class _Players:
    """Who plays against whom."""

    student: str = setting("student", ref="role", help="denoiser whose x0_hat is judged")
    judge: str = setting("judge", ref="role", help="discriminator")
    view: str = setting("clean", ref="view", help="view of the denoiser")


class ToyFool(LossTerm):
    """Non-saturating generator loss: the student's x0_hat should score as real."""

    @settings
    class Settings(_Players):
        """Keys of `use = "toy-fool"`."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.fake = Scores(settings.judge, X0Hat(settings.student, settings.view))
        self.needs = (self.fake,)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return F.softplus(-step.get(self.fake))


class ToyJudge(LossTerm):
    """Logistic discriminator loss on clean samples and the student's x0_hat."""

    @settings
    class Settings(_Players):
        """Keys of `use = "toy-judge"`."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.fake = Scores(settings.judge, X0Hat(settings.student, settings.view))
        self.real = Scores(settings.judge)
        self.needs = (self.fake, self.real)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return F.softplus(step.get(self.fake)) + F.softplus(-step.get(self.real))


class ToyAlign(LossTerm):
    """One minus the cosine of a projected feature of the student with an alignment target."""

    @settings
    class Settings:
        """Keys of `use = "toy-align"`."""

        role: str = setting("student", ref="role", help="model whose feature is aligned")
        view: str = setting("clean", ref="view", help="view it looks at")
        tap: str = setting("layer.0", help="tap of the feature")
        target: str = setting("target", ref="role", help="alignment target")
        width: int = setting(4, ge=1, help="feature width of the target")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.feature = Features(settings.role, settings.view, settings.tap)
        self.target = Target(settings.target)
        self.needs = (self.feature, self.target)
        taps = build.models[settings.role].taps
        width = taps[settings.tap].width if settings.tap in taps else 1
        self.head = nn.Linear(width, settings.width)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        projected = self.head(step.get(self.feature).flatten(1))
        return 1 - F.cosine_similarity(projected, step.get(self.target), dim=1)


class ToyImitate(LossTerm):
    """Squared distance of two denoisers' predicted noise."""

    @settings
    class Settings:
        """Keys of `use = "toy-imitate"`."""

        role: str = setting("student", ref="role", help="model that is trained")
        teacher: str = setting("teacher", ref="role", help="model that is imitated")
        view: str = setting("clean", ref="view", help="view of the trained model")
        teacher_view: str = setting("clean", ref="view", help="view of the teacher")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.own = EpsHat(settings.role, settings.view)
        self.other = EpsHat(settings.teacher, settings.teacher_view)
        self.needs = (self.own, self.other)

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return (step.get(self.own) - step.get(self.other)).square().flatten(1).mean(1)
