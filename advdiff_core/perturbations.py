"""Any attack as the perturbation of a training view."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.attack import Attack, ScalarVictim, Victim
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.perturbation import Perturbation, Probe, SearchCost, scale_of
from advdiff_core.interfaces.query import Mode, Query, Step
from advdiff_core.interfaces.requirements import nested_term, refuse
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.step.queries import EpsHat, Features, Logits, X0Hat
from advdiff_core.types import Budget, Noised

__all__ = ["AttackPerturbation"]

Objective = Literal[
    "auto", "cross-entropy", "kl", "prediction-gap", "x0-gap", "denoise", "feature-gap", "term"
]
#: What grows on views of images alone, and on noised views alone; the others on both.
ON_IMAGES = ("cross-entropy", "kl")
ON_NOISED = ("prediction-gap", "x0-gap", "denoise")
#: Distances from the value at the unmoved input, which the terms share.
GAPS = ("prediction-gap", "x0-gap", "feature-gap", "kl")


class AttackPerturbation(Perturbation):
    """Runs an attack as the perturbation of a view.

    On a view of images it attacks a classifier's cross-entropy (Madry et al., 2018) or the
    divergence from its clean prediction (Zhang et al., 2019); on a noised view a denoiser: the gap
    to its own prediction at the unmoved input, or its denoising loss. On both, the features at a
    tap, or any loss term: what training lowers with the term is then what the attack raises. Gaps
    have no slope at the unmoved input: choose an attack with a random start.
    """

    @settings
    class Settings:
        """Keys of `use = "attack"`."""

        attack: Spec = setting(kind="attack", help="the attack")
        role: str = setting("student", ref="role", help="model that is attacked")
        norm: Literal["linf", "l2", "l1"] = setting("linf", help="norm of the ball")
        radius: float = setting(8 / 255, ge=0.0, help="radius of the ball, in `unit`")
        unit: Literal["pixel", "image", "noise"] = setting(
            "pixel", help="count on the [0, 1] scale of the data, in x_t as it is, or in eps"
        )
        objective: Objective = setting(
            "auto",
            help="what grows; auto is cross-entropy on images, prediction-gap on noised samples",
        )
        tap: str = setting(
            "",
            applies=("objective", ("feature-gap",)),
            help="place in the model whose tensor moves",
        )
        term: Spec | None = setting(
            None, kind="loss_term", applies=("objective", ("term",)),
            help="loss term that grows; its own keys name the model, and the view that is moved",
        )  # fmt: skip
        mode: Mode = setting(
            "train",
            help="how the model runs while it is attacked: train takes batch statistics and"
            " dropout as training does, eval running statistics; neither moves the statistics",
        )
        follows: bool = setting(
            True, help="on noised views: the target noise explains the moved input, too"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.unit = settings.unit
        self.follows = settings.follows
        attack = build.nested(settings.attack)
        assert isinstance(attack, Attack), "discovery checks the kind"
        self.attack = attack
        self.term = self._term()
        if settings.objective == "feature-gap" and not settings.tap:
            refuse(self.build, "tap", "feature-gap needs the name of a tap", 'write tap = "..."')

    def _term(self) -> LossTerm | None:
        spec = self.settings.term
        if self.settings.objective != "term":
            return None
        if spec is None:
            refuse(self.build, "term", "nothing says which term", 'write term = { use = "..." }')
            return None
        if self.settings.mode != "train":
            message = "a term runs the model as training does"
            refuse(self.build, "mode", message, 'write mode = "train"')
        return nested_term(self.build, spec)

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The value at the unmoved input, if the distance from it is attacked."""
        return self.probes(base) if self._objective(base) in GAPS else ()

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """What the attack sees of the model: logits, a prediction, features, or a term's needs."""
        return self.term.needs if self.term is not None else (self._query(base),)

    def cost(self) -> SearchCost:
        """What the attack says of itself."""
        return self.attack.cost()

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """The ball of the settings."""
        del noised, rng
        return Budget(self.settings.norm, self.settings.radius, self.settings.unit)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Run the attack in units of `x_t`, and return what it added, in the budget's unit."""
        domain = self.build.data.domain if self.build.data is not None else None
        scale = scale_of(budget, noised, domain)
        radius = budget.radius * (scale.flatten() if isinstance(scale, Tensor) else scale)
        found = self.attack.run(
            self._victim(noised, probe, scale),
            noised.x_t.detach(),
            Budget(budget.norm, radius, "image"),
            domain=domain if noised.t is None else None,
            rng=rng,
        )
        return (found - noised.x_t) / scale

    def _victim(self, noised: Noised, probe: Probe, scale: Tensor | float) -> Victim:
        """The model at the base view, as an attack sees it."""

        def moved(x: Tensor) -> Step:
            return probe.at((x - noised.x_t) / scale)

        if self.term is not None:
            return ScalarVictim(function=lambda x: self._lost(moved(x)), scalar=lambda loss: loss)
        objective, query = self._objective(probe.base), self._query(probe.base)
        if objective in ON_IMAGES:
            clean = probe.step.get(query) if objective == "kl" else None
            return ScalarVictim(
                function=lambda x: moved(x).get(query),
                scalar=_of_logits(noised.y, clean),
                labels=_labels(noised.y),
            )
        wanted = probe.step.get(query) if objective in GAPS else None
        return ScalarVictim(
            function=lambda x: (
                moved(x).get(query) - (self._target(noised, x) if wanted is None else wanted)
            ),
            scalar=lambda gap: gap.square().flatten(1).mean(1),
        )

    def _lost(self, step: Step) -> Tensor:
        assert self.term is not None
        loss: Tensor = self.term(step)
        return loss

    def _query(self, base: str) -> Query[Tensor]:
        objective, role, mode = self._objective(base), self.settings.role, self.settings.mode
        if objective in ON_IMAGES:
            return Logits(role, base, mode=mode)
        if objective == "feature-gap":
            return Features(role, base, self.settings.tap, mode=mode)
        predicted = X0Hat if objective == "x0-gap" else EpsHat
        return predicted(role, base, mode=mode)

    def _objective(self, base: str) -> str:
        view = self.build.views.get(base)
        images = view is not None and view.root == "image"
        chosen: str = self.settings.objective
        if chosen == "auto":
            chosen = "cross-entropy" if images else "prediction-gap"
        if chosen in (ON_NOISED if images else ON_IMAGES):
            what = "images" if images else "noised samples"
            message = f"{chosen!r} cannot be attacked on {base!r}, a view of {what}"
            refuse(self.build, "objective", message, 'write objective = "auto"')
        needs_labels = chosen in ON_IMAGES
        if needs_labels and self.build.data is not None and self.build.data.classes == 0:
            refuse(
                self.build, "use", "the data have no labels to attack", "use a dataset with classes"
            )
        return chosen

    def _target(self, noised: Noised, x: Tensor) -> Tensor:
        """The noise that explains `x` [B, ...], if the target follows it."""
        assert noised.eps is not None
        assert noised.sigma is not None
        moved = (x - noised.x_t) / noised.sigma if self.follows else 0.0
        return noised.eps + moved


def _labels(y: Tensor | None) -> Tensor:
    """True classes [B]; of a mixed sample that of the larger part."""
    assert y is not None, "a classifier's data have labels"
    return y.argmax(dim=1) if y.dim() == 2 else y


def _of_logits(y: Tensor | None, clean: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Cross-entropy [B] of logits [B, K], or their divergence from the `clean` ones [B, K]."""
    assert y is not None, "a classifier's data have labels"
    if clean is None:
        return lambda logits: F.cross_entropy(logits, y, reduction="none")
    before = clean.log_softmax(1)
    return lambda logits: (before.exp() * (before - logits.log_softmax(1))).sum(1)
