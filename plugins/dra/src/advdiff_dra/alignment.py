"""The alignment of a network's features with those of a frozen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.errors import ContractError, NumericsError
from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.query import Step
from advdiff_core.settings import setting, settings
from advdiff_core.step.queries import Features, Target
from advdiff_core.types import TapInfo
from advdiff_dra.classifiers import refuse
from advdiff_dra.features import check_tap, tokens

__all__ = ["FeatureAlignment", "penultimate", "projector"]


class FeatureAlignment(LossTerm):
    """`1 - cos(h(f), target)`: features of the trained network, projected, against frozen ones.

    The alignment of DRA (arXiv 2602.19931, eq. 3 and 4; there without the constant 1): f are the
    features before the last layer at the *adversarial* image, the target those of a frozen encoder
    at the clean one, h a perceptron that is trained along and serves for nothing else. Its weight
    in the paper is not known; 0.5, as in REPA (Yu et al., 2024), is our choice in the recipes.
    With tokens on both sides each is compared with its own; a vector is compared with all tokens.
    """

    @settings
    class Settings:
        """Keys of `use = "feature-alignment"`."""

        role: str = setting("student", ref="role", help="network that is aligned")
        view: str = setting("adv", ref="view", help="view it looks at")
        tap: str = setting("", help="place in it; its last vector of features if left out")
        target: str = setting("target", ref="role", help="alignment target")
        second: str = setting(
            "", ref="role",
            help="another target, for example at random noise levels: the mean of both losses",
        )  # fmt: skip
        projector: Literal["own", "shared"] = setting(
            "own",
            help="whether the second target has a projector of its own; the paper does not say",
        )
        hidden: int = setting(2048, ge=1, le=2**16, help="width of the projector's hidden layers")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        model = build.models[settings.role]
        if model.kind != "backbone":
            fix = "name the network that is trained"
            refuse(build, "role", f"model {settings.role!r} is no backbone", fix)
        tap = settings.tap or penultimate(model.taps)
        info = check_tap(build, model.taps, tap, settings.role)
        self.features = Features(settings.role, settings.view, tap)
        named = {"target": settings.target, "second": settings.second}
        chosen = {key: role for key, role in named.items() if role}
        widths = [self._width(role, key) for key, role in chosen.items()]
        self.targets = [Target(role) for role in chosen.values()]
        self.needs = (self.features, *self.targets)
        self._check_shared(widths)
        own = widths if settings.projector == "own" else widths[:1]
        self.projectors = nn.ModuleList(projector(info.width, settings.hidden, w) for w in own)
        self._looked = False

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B], from 0 to 2."""
        features = tokens(step.get(self.features))
        targets = [step.get(target) for target in self.targets]
        if not self._looked:
            self._look(features, targets)
        losses = [
            _distance(self.projectors[number % len(self.projectors)], features, tokens(target))
            for number, target in enumerate(targets)
        ]
        return torch.stack(losses).mean(0)

    def _width(self, role: str, key: str) -> int:
        """Width of a target.

        Raises:
            RecipeError: R10 if the role is no alignment target.
        """
        info: ModelInfo = self.build.models[role]
        if info.kind != "alignment_target":
            fix = 'give that model kind = "alignment_target"'
            refuse(self.build, key, f"model {role!r} is no alignment target", fix)
        return info.width

    def _check_shared(self, widths: list[int]) -> None:
        """Refuse one projector for two widths.

        Raises:
            RecipeError: R10.
        """
        if self.settings.projector == "shared" and len(set(widths)) > 1:
            first, second = (target.role for target in self.targets)
            message = f"target {first!r} has {widths[0]} features and {second!r} has {widths[1]}"
            refuse(self.build, "projector", message, 'write projector = "own"')

    def _look(self, features: Tensor, targets: list[Tensor]) -> None:
        """Check the first targets of a run: shapes are known only now, and reading numbers waits.

        Raises:
            ContractError: R10 if a target is not as wide as it says, or has other tokens.
            NumericsError: N01 if a target is not finite.
        """
        for query, target in zip(self.targets, targets, strict=True):
            where, width = f"models.{query.role}", self.build.models[query.role].width
            if target.shape[-1] != width:
                message = f"its features have width {target.shape[-1]}, it promised {width}"
                fix = "mend the target's `width`"
                raise ContractError(message, code="R10", where=where, fix=fix)
            here, there = features.shape[1], tokens(target).shape[1]
            if min(here, there) > 1 and here != there:
                message = f"it has {there} tokens, the tap {self.features.tap!r} has {here}"
                fix = f"pool the target, or choose another tap in {self.build.path}.tap"
                raise ContractError(message, code="R10", where=where, fix=fix)
            if not bool(target.isfinite().all()):
                fix = "look at the weights of the teacher, and at its tap"
                raise NumericsError("its features are not finite", code="N01", where=where, fix=fix)
        self._looked = True


def projector(width: int, hidden: int, target: int) -> nn.Sequential:
    """The perceptron of REPA (Yu et al., 2024): three layers with SiLU between, no norm.

    Args:
        width: Features that go in.
        hidden: Width of both hidden layers.
        target: Features that come out.
    """
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
        nn.Linear(hidden, target),
    )  # fmt: skip


def penultimate(taps: Mapping[str, TapInfo]) -> str:
    """The last tap that is a vector, else the last one: what the last layer reads; "" of none."""
    vectors = [name for name, info in taps.items() if info.size == ()]
    return (vectors or list(taps) or [""])[-1]


def _distance(project: nn.Module, features: Tensor, target: Tensor) -> Tensor:
    """`1 - cos` [B], mean over tokens, of features [B, N, D], projected, and target [B, M, E]."""
    if target.shape[1] == 1:
        features = features.mean(1, keepdim=True)
    return (1 - F.cosine_similarity(project(features), target, dim=2)).mean(1)
