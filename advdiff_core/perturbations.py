"""Any attack as the perturbation of a training view."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.attack import Attack
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.perturbation import Perturbation, Probe, SearchCost, scale_of
from advdiff_core.interfaces.query import Query
from advdiff_core.settings import Spec, setting, settings
from advdiff_core.step.queries import EpsHat, Logits
from advdiff_core.types import Budget, Noised

__all__ = ["AttackPerturbation"]


class AttackPerturbation(Perturbation):
    """Runs an attack as the perturbation of a view.

    On a view of images it attacks a classifier's cross-entropy (Madry et al., 2018); on a noised
    view a denoiser: the gap to its own prediction at the unmoved input, or its denoising loss.
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
        objective: Literal["auto", "cross-entropy", "prediction-gap", "denoise"] = setting(
            "auto",
            help="what grows; auto is cross-entropy on images, prediction-gap on noised samples",
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

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at the unmoved input, if the gap to it is attacked."""
        gap = self._objective(base) == "prediction-gap"
        return (EpsHat(self.settings.role, base),) if gap else ()

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """What the attack sees of the model: logits, or the predicted noise."""
        return (self._query(base),)

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
        victim = self._victim(noised, probe, scale)
        radius = budget.radius * (scale.flatten() if isinstance(scale, Tensor) else scale)
        found = self.attack.run(
            victim,
            noised.x_t.detach(),
            Budget(budget.norm, radius, "image"),
            domain=domain if noised.t is None else None,
            rng=rng,
        )
        return (found - noised.x_t) / scale

    def _victim(self, noised: Noised, probe: Probe, scale: Tensor | float) -> _Victim:
        objective = self._objective(probe.base)
        reference = None
        if objective == "prediction-gap":
            reference = probe.step.get(EpsHat(self.settings.role, probe.base))
        return _Victim(
            noised=noised, probe=probe, query=self._query(probe.base), scale=scale,
            objective=objective, reference=reference, follows=self.follows,
        )  # fmt: skip

    def _query(self, base: str) -> Query[Tensor]:
        if self._objective(base) == "cross-entropy":
            return Logits(self.settings.role, base)
        return EpsHat(self.settings.role, base)

    def _objective(self, base: str) -> str:
        view = self.build.views.get(base)
        images = view is not None and view.root == "image"
        chosen = self.settings.objective
        if chosen == "auto":
            chosen = "cross-entropy" if images else "prediction-gap"
        if images != (chosen == "cross-entropy"):
            what = "images" if images else "noised samples"
            message = f"{chosen!r} cannot be attacked on {base!r}, a view of {what}"
            self._refuse("objective", message, 'write objective = "auto"')
        if images and self.build.data is not None and self.build.data.classes == 0:
            self._refuse("use", "the data have no labels to attack", "use a dataset with classes")
        return chosen

    def _refuse(self, key: str, message: str, fix: str) -> None:
        where = f"{self.build.path}.{key}"
        raise RecipeError([Fault(code="R10", key=where, message=message, fix=fix)])


@frozen(kw_only=True, eq=False)
class _Victim:
    """The model at the base view, as an attack sees it; see `interfaces.attack.Victim`.

    Attributes:
        noised: The base view.
        probe: Access to the model at moved inputs.
        query: What is read of the model.
        scale: Factor from the budget's unit to units of `x_t`.
        objective: What grows.
        reference: Prediction at the unmoved input [B, ...], for the gap.
        follows: Whether the target of the denoising loss moves with the input.
    """

    noised: Noised
    probe: Probe
    query: Query[Tensor]
    scale: Tensor | float
    objective: str
    reference: Tensor | None
    follows: bool

    def outputs(self, x: Tensor) -> Tensor:
        """Logits, or the predicted noise [B, ...] as its deviation from what it should be."""
        delta = (x - self.noised.x_t) / self.scale
        value = self.probe.at(delta).get(self.query)
        if self.objective == "cross-entropy":
            return value
        if self.objective == "prediction-gap":
            assert self.reference is not None
            return value - self.reference
        return value - self._target(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy, or the squared deviation [B]."""
        if self.objective != "cross-entropy":
            return outputs.square().flatten(1).mean(1)
        assert self.noised.y is not None, "a classifier's data have labels"
        return F.cross_entropy(outputs, self.noised.y, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples that are classified wrongly [B]; None for a denoiser."""
        labels = self.labels
        return None if labels is None else outputs.argmax(dim=1).ne(labels)

    @property
    def labels(self) -> Tensor | None:
        """True classes [B]; of a mixed sample that of the larger part; None for a denoiser."""
        if self.objective != "cross-entropy":
            return None
        assert self.noised.y is not None, "a classifier's data have labels"
        y = self.noised.y
        return y.argmax(dim=1) if y.dim() == 2 else y

    def rows(self, rows: Tensor) -> None:
        """Nothing: a training step is one batch."""
        del rows

    def _target(self, x: Tensor) -> Tensor:
        assert self.noised.eps is not None
        assert self.noised.sigma is not None
        moved = (x - self.noised.x_t) / self.noised.sigma if self.follows else 0.0
        return self.noised.eps + moved
