"""Transfer: adversarial examples of another network, tried on the victim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.starts import inside
from advdiff_core import Attack, Backbone, Budget, Build, Draws, SearchCost, Spec, Victim
from advdiff_core.errors import ContractError
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["SurrogateVictim", "Transfer"]


class Transfer(Attack):
    """Any attack on a surrogate, whose finds are tried on the victim (Papernot et al. 2016).

    The victim is asked twice: at the clean points and at what was found; a sample that the find
    does not hurt comes back as it was. Of a victim without labels the surrogate's output is driven
    away from what it was, which takes an attack with a random start. The surrogate's own passes are
    not counted as the victim's. In a training view, name a frozen role as `role` of the view's
    attack instead.
    """

    @settings
    class Settings:
        """Keys of `use = "transfer"`."""

        attack: Spec = setting(kind="attack", help="the attack on the surrogate")
        model: Spec = setting(kind="backbone", help="network of the surrogate")
        weights: Path = setting(help="run, checkpoint, imported model or safetensors file")
        role: str = setting("student", help="role whose weights are taken, where weights is a run")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        nested, network = build.nested(settings.attack), build.nested(settings.model)
        assert isinstance(nested, Attack), "discovery checks the kind"
        assert isinstance(network, Backbone), "discovery checks the kind"
        build.weights(network, settings.weights, key="weights", role=settings.role)
        self.nested = nested
        self.network = network.eval().requires_grad_(False)
        # Of the class for most attacks; a wrapper has those of what it wraps.
        self.norms = nested.norms  # type: ignore[misc]

    def objective(self, victim: Victim, clean: Tensor) -> Callable[[Tensor], Tensor]:
        """That of the victim."""
        del clean
        return victim.loss

    def cost(self) -> SearchCost:
        """The clean points and what was found."""
        return SearchCost(2, 0)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`."""
        with torch.no_grad():
            outputs = victim.outputs(x)
            best = Best(x, victim.loss(outputs), victim.broken(outputs))
        surrogate = self._surrogate(victim, x)
        found = inside(self.nested.search(surrogate, x, budget, domain, rng), x, budget, domain)
        with torch.no_grad():
            outputs = victim.outputs(found)
            best.update(found, victim.loss(outputs), victim.broken(outputs))
        return best.x

    def _surrogate(self, victim: Victim, x: Tensor) -> SurrogateVictim:
        network = self.network.to(x.device, x.dtype)
        with torch.no_grad():
            clean = network(x).output
        labels = victim.labels
        if labels is not None and bool((labels >= clean.shape[1]).any()):
            message = f"the surrogate has {clean.shape[1]} classes, the labels go to "
            raise ContractError(
                message + str(int(labels.max())), code="R10", where=f"{self.build.path}.model",
                fix="take a surrogate trained on the same classes",
            )  # fmt: skip
        return SurrogateVictim(network=network, labels=labels, clean=clean)


@frozen(kw_only=True, eq=False)
class SurrogateVictim:
    """The surrogate in the place of the victim; see `advdiff_core.Victim`.

    Attributes:
        network: The surrogate, frozen, in eval mode.
        labels: True classes [B], or None.
        clean: Its outputs at the clean inputs [B, ...].
    """

    network: Backbone
    labels: Tensor | None
    clean: Tensor

    def outputs(self, x: Tensor) -> Tensor:
        """The surrogate's outputs [B, ...] at `x` [B, ...]."""
        found = self.network(x).output
        assert isinstance(found, Tensor), "a whole forward has an output"
        return found

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B], or the squared distance from the clean outputs [B]."""
        if self.labels is None:
            return (outputs - self.clean).square().flatten(1).mean(1)
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor | None:
        """Samples that the surrogate misclassifies [B]."""
        return None if self.labels is None else outputs.argmax(1).ne(self.labels)

    def rows(self, rows: Tensor) -> SurrogateVictim:
        """The same for the samples `rows` [N]."""
        labels = None if self.labels is None else self.labels[rows]
        return evolve(self, labels=labels, clean=self.clean[rows])
