"""What a stage is made of, as the tables of a recipe would say it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.interfaces.perturbation import Perturbation
from advdiff_core.interfaces.time_sampler import TimeSampler
from advdiff_core.step.plan import Phase

__all__ = ["Drawn", "Model", "Moved", "Turn"]


@frozen
class Model:
    """A model role of a stage.

    Attributes:
        component: The class.
        settings: Its settings; their defaults if None.
        kind: "backbone", "discriminator" or "alignment_target".
        parametrization: As in a recipe; "none" for all but denoisers.
        frozen: Trained by nobody.
        follows: Role that it is a target network of, whose weights it begins with; "" for none.
        train: Train mode (dropout, batch statistics); eval mode otherwise.
        sigma_data: Standard deviation of the data that a denoiser assumes.
        recompute: Recompute activations in the backward.
    """

    component: type[ModuleComponent]
    settings: Any = None
    kind: str = "backbone"
    parametrization: str = "eps"
    frozen: bool = False
    follows: str = ""
    train: bool = False
    sigma_data: float = 1.0
    recompute: bool = False


@frozen
class Moved:
    """A perturbed view of a stage.

    Attributes:
        base: The view it perturbs.
        component: The perturbation's class.
        settings: Its settings; their defaults if None.
    """

    base: str
    component: type[Perturbation]
    settings: Any = None


@frozen
class Drawn:
    """What draws the training times of a stage, in place of a density.

    Attributes:
        component: Its class.
        settings: Its settings; their defaults if None.
    """

    component: type[TimeSampler]
    settings: Any = None


@frozen
class Turn:
    """A player's part in a step.

    Attributes:
        player: Its name.
        terms: Its terms by name.
        models: Roles it trains; the one of its own name if empty.
        weights: Factors of terms; 1 for those left out.
        every: Takes part in every n-th step.
        passes: Backward passes per batch.
        moves: Weights move after each pass, not only after the last.
        fresh: Has a step of its own.
        rate: Length of the plain gradient step after a pass; 0 leaves the weights alone.
    """

    player: str
    terms: Mapping[str, LossTerm]
    models: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(factory=dict)
    every: int = 1
    passes: int = 1
    moves: bool = False
    fresh: bool = False
    rate: float = 0.0

    def phase(self) -> Phase:
        """The same as the plan knows it."""
        return Phase(
            player=self.player,
            roles=frozenset(self.models or (self.player,)),
            needs=tuple(query for term in self.terms.values() for query in term.needs),
            every=self.every,
            passes=self.passes,
            moves=self.moves,
            fresh=self.fresh,
        )
