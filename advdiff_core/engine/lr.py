"""Learning-rate schedules: pure functions of the images seen, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from advdiff_core.errors import Fault, RecipeError

__all__ = ["LearningRate", "check_momentum", "set_momentum"]


@frozen(kw_only=True)
class LearningRate:
    """Factor on the optimizer's own rates.

    Attributes:
        law: "constant", "linear" (to `final` at the end), "cosine" (to `final` at the end),
            "inverse-sqrt" (constant up to `reference` images, then falling as 1 / sqrt;
            Karras et al. 2024, EDM2) or "one-cycle" (half a cosine from `first` up to 1, and half a
            cosine down to `final`; Smith & Topin 2018 as torch's OneCycleLR has it).
        warmup: Images over which the rate rises linearly from 0.
        images: Images of the whole run.
        final: Factor at the end of "linear", "cosine" and "one-cycle".
        reference: Images at which "inverse-sqrt" begins to fall; 0 means the end of the warm-up.
        first: Factor at the start of "one-cycle".
        peak: Share of the run after which "one-cycle" is at its peak.
        stairs: Steps of equal length that "one-cycle" is taken in; 0 for a smooth curve.
        momentum: Momentum of "one-cycle" at the peak and at both ends; None leaves the optimizer's.
    """

    law: str = "constant"
    warmup: int = 0
    images: int = 1
    final: float = 0.0
    reference: int = 0
    first: float = 0.04
    peak: float = 0.3
    stairs: int = 0
    momentum: tuple[float, float] | None = None

    def factor(self, nimg: int) -> float:
        """Factor after `nimg` images."""
        rise = min((nimg + 1) / self.warmup, 1.0) if self.warmup else 1.0
        progress = (nimg - self.warmup) / max(self.images - self.warmup, 1)
        return rise * self._law(min(max(progress, 0.0), 1.0), nimg)

    def momentum_at(self, nimg: int) -> float | None:
        """Momentum after `nimg` images, against the rate; None if it is the optimizer's own."""
        if self.momentum is None:
            return None
        low, high = self.momentum
        return self._cycle(nimg, start=high, top=low, end=high)

    def _cycle(self, nimg: int, *, start: float, top: float, end: float) -> float:
        """From `start` to `top` to `end`, by two halves of a cosine."""
        last = self.stairs - 1 if self.stairs else self.images
        place = nimg * self.stairs // self.images if self.stairs else nimg
        turn = self.peak * self.stairs - 1 if self.stairs else self.peak * self.images
        if place <= turn:
            return _half_cosine(start, top, place / turn if turn else 1.0)
        return _half_cosine(top, end, min((place - turn) / max(last - turn, 1e-9), 1.0))

    def _law(self, progress: float, nimg: int) -> float:
        if self.law == "linear":
            return 1 + (self.final - 1) * progress
        if self.law == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        if self.law == "inverse-sqrt":
            start = max(self.reference or self.warmup, 1)
            return 1 / math.sqrt(max(nimg / start, 1.0))
        if self.law == "one-cycle":
            return self._cycle(nimg, start=self.first, top=1.0, end=self.final)
        return 1.0


def check_momentum(lr: LearningRate, groups: Sequence[Mapping[str, Any]], player: str) -> None:
    """Refuse to cycle the momentum of an optimizer that has none.

    Raises:
        RecipeError: R10.
    """
    if lr.momentum is None or all("momentum" in group or "betas" in group for group in groups):
        return
    where = f"players.{player}.lr_schedule.momentum"
    message = "the optimizer has neither momentum nor betas"
    raise RecipeError([Fault(code="R10", key=where, message=message, fix="leave it out")])


def set_momentum(group: dict[str, Any], momentum: float) -> None:
    """Give a parameter group of a torch optimizer a momentum, or a first beta."""
    if "momentum" in group:
        group["momentum"] = momentum
    else:
        group["betas"] = (momentum, *group["betas"][1:])


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
