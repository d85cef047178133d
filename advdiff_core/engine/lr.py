"""Learning-rate schedules: pure functions of the images seen, so that resuming needs no state."""

from __future__ import annotations

import math

from attrs import frozen

__all__ = ["LearningRate"]


@frozen(kw_only=True)
class LearningRate:
    """Factor on the optimizer's own rates.

    Attributes:
        law: "constant", "linear" (to `final` at the end), "cosine" (to `final` at the end) or
            "inverse-sqrt" (constant up to `reference` images, then falling as 1 / sqrt;
            Karras et al. 2024, EDM2).
        warmup: Images over which the rate rises linearly from 0.
        images: Images of the whole run.
        final: Factor at the end of "linear" and "cosine".
        reference: Images at which "inverse-sqrt" begins to fall; 0 means the end of the warm-up.
    """

    law: str = "constant"
    warmup: int = 0
    images: int = 1
    final: float = 0.0
    reference: int = 0

    def factor(self, nimg: int) -> float:
        """Factor after `nimg` images."""
        rise = min((nimg + 1) / self.warmup, 1.0) if self.warmup else 1.0
        progress = (nimg - self.warmup) / max(self.images - self.warmup, 1)
        return rise * self._law(min(max(progress, 0.0), 1.0), nimg)

    def _law(self, progress: float, nimg: int) -> float:
        if self.law == "linear":
            return 1 + (self.final - 1) * progress
        if self.law == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2
        if self.law == "inverse-sqrt":
            start = max(self.reference or self.warmup, 1)
            return 1 / math.sqrt(max(nimg / start, 1.0))
        return 1.0
