"""What adapters of other packages' attacks share: units, seeds, the guard, and refusals."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from advdiff_attacks.boundaries import is_broken
from advdiff_attacks.foreign_guard import ForeignNet, contained
from advdiff_core import AdvdiffError, Attack, Budget, ContractError, Draws, Victim, expand
from advdiff_core.math import norms
from advdiff_core.types import Domain, Norm

__all__ = ["Call", "Foreign"]


@frozen
class Call:
    """What a foreign attack is called with.

    Attributes:
        net: The victim as a module of pixels in [0, 1].
        x: Clean pixels [B, ...] in [0, 1].
        y: True classes [B].
        norm: Norm of the budget.
        radius: Radius on the scale [0, 1], finite.
        seed: For attacks that take one.
    """

    net: ForeignNet
    x: Tensor
    y: Tensor
    norm: Norm
    radius: float
    seed: int


class Foreign(Attack):
    """An attack of another package behind a guard.

    It sees pixels in [0, 1] and logits whatever the victim's domain, can reach neither the model
    nor global state, and what it returns goes through `Attack.run` like any other result. Nothing
    is promised of it beyond that: samples of a batch may depend on each other through its global
    generator, and its cost is not known.
    """

    #: The package, as `pip install "advdiff-attacks[package]"` names it.
    package: str = ""
    keeps_best = False

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.package

    @abstractmethod
    def call(self, call: Call) -> Tensor:
        """Adversarial pixels [B, ...] in [0, 1]; runs inside the guard."""

    def arguments(self) -> dict[str, Any]:
        """The keys of the recipe as arguments of the attack."""
        return attrs.asdict(self.settings, recurse=False)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`.

        Raises:
            ContractError: If there are no labels or no domain, if radii differ between samples that
                cannot be taken apart, or if the foreign code raises.
        """
        checked = self._check(victim, domain)
        radius = torch.as_tensor(budget.radius).to(x).expand(len(x))
        # A number of each sample, so that another batch draws other noise.
        seeds = rng.integers((len(x), 1), 0, 2**31)[:, 0]
        found = x.clone()
        for rows, part in self._groups(victim, radius):
            seed = int(seeds[rows].sum()) % 2**31
            one = float(radius[rows].max())
            moved = self._moved(part, x[rows], Budget(budget.norm, one), checked, seed)
            found[rows] = moved
        return found

    def _check(self, victim: Victim, domain: Domain | None) -> Domain:
        if victim.labels is None:
            message = f"{self.name} attacks classifiers, and this victim has no true classes"
            fix = "take a native attack, such as pgd or apgd-ce"
            raise ContractError(message, where=self.build.path, fix=fix)
        if domain is None:
            message = f"{self.name} knows pixels in [0, 1], and these inputs have no range"
            fix = "give the data a domain, or take a native attack, such as pgd or apgd-ce"
            raise ContractError(message, where=self.build.path, fix=fix)
        return domain

    def _groups(self, victim: Victim, radius: Tensor) -> Iterator[tuple[Tensor, Victim]]:
        """Samples of one radius each, since foreign code knows one; those of radius 0 stay out."""
        every = torch.arange(len(radius), device=radius.device)
        sizes = torch.unique(radius[radius > 0])
        for size in sizes:
            rows = (radius == size).nonzero()[:, 0]
            part = victim if len(rows) == len(every) else victim.rows(rows)
            if part is None and len(sizes) > 1:
                message = f"{self.name} knows one radius, and these samples have {len(sizes)}"
                fix = "give all samples one radius: this victim cannot be taken apart"
                raise ContractError(message, where=self.build.path, fix=fix)
            yield (every, victim) if part is None else (rows, part)

    def _moved(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain, seed: int
    ) -> Tensor:
        """What the attack makes of `x` [B, ...], in the victim's units."""
        # Their code mixes in float32 whatever it is given.
        pixels = ((x - domain.low) / domain.span).clamp(0, 1).float()
        assert victim.labels is not None
        radius = float(budget.radius) / domain.span
        if not math.isfinite(radius):
            radius = _widest(pixels, budget.norm)
        net = ForeignNet(victim, x, domain)
        call = Call(net, pixels.clone(), victim.labels.clone(), budget.norm, radius, seed)
        made = self._contained(call)
        # The difference alone: pixels that were not moved stay as they are, bit for bit.
        moved = x + domain.span * (made.detach().to(pixels) - pixels).to(x)
        return self._broken_ones(victim, x, moved, budget) if self.minimal_norm else moved

    def _contained(self, call: Call) -> Tensor:
        try:
            with contained(call.seed):
                made = self.call(call)
        except AdvdiffError:
            raise
        except Exception as error:
            message = f"{self.name} failed: {type(error).__name__}: {error}"
            missing = error.name if isinstance(error, ModuleNotFoundError) else ""
            fix = f"pip install {missing}" if missing else "check its settings, or take another"
            raise ContractError(message, where=self.build.path, fix=fix) from error
        if made.shape != call.x.shape:
            message = f"{self.name} returned shape {list(made.shape)}, wanted {list(call.x.shape)}"
            raise ContractError(message, where=self.build.path, fix="take another attack")
        return made

    def _broken_ones(self, victim: Victim, x: Tensor, moved: Tensor, budget: Budget) -> Tensor:
        """The points [B, ...] that are broken within the radius, and else the clean inputs."""
        with torch.no_grad():
            already, broken = (is_broken(victim, victim.outputs(at)) for at in (x, moved))
        inside = norms.norm(moved - x, budget.norm) <= budget.radius
        kept = expand(broken & inside & ~already, x)
        return torch.where(kept, moved, x)


def _widest(pixels: Tensor, norm: Norm) -> float:
    """A radius that holds all of [0, 1]^D."""
    size = pixels[0].numel()
    return {"linf": 1.0, "l2": math.sqrt(size), "l1": float(size)}[norm]
