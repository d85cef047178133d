"""Images in the range of values that a teacher was trained with."""

from __future__ import annotations

from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain
from advdiff_dra.classifiers import refuse

__all__ = ["Mover"]


class Mover:
    """Moves images from the data's range to the teacher's.

    Args:
        build: What the target is told of the data.
        domain: The teacher's range as the recipe says it; None if it says nothing.
        known: The data that the teacher was trained on; None if nobody knows.

    Raises:
        RecipeError: R10 if the teacher was trained on images of another shape or another range
            than the recipe says, or if the data have no range to move from.
    """

    def __init__(
        self, build: Build, domain: tuple[float, float] | None, known: DataInfo | None
    ) -> None:
        assert build.data is not None
        if known is not None and known.shape != build.data.shape:
            message = f"it was trained on {_shape(known)}, the data have {_shape(build.data)}"
            refuse(build, "teacher", message, "take a teacher of this size")
        wanted = Domain(*domain) if domain is not None else known.domain if known else None
        if known is not None and wanted != known.domain:
            message = f"{_range(wanted)}, it was trained on values in {_range(known.domain)}"
            refuse(build, "domain", message, "leave the key out")
        self.source, self.target = build.data.domain, wanted or build.data.domain
        if self.target is not None and not self.target.span > 0:
            refuse(build, "domain", _range(self.target), "write [low, high]")
        if self.source is None and self.target is not None:
            message = f"{_range(self.target)}, but the data have no range"
            refuse(build, "domain", message, "leave the key out")

    def __call__(self, x0: Tensor) -> Tensor:
        """Images `x0` [B, ...] in the teacher's range."""
        if self.source is None or self.target is None or self.source == self.target:
            return x0
        factor = self.target.span / self.source.span
        return self.target.low + (x0 - self.source.low) * factor


def _range(domain: Domain | None) -> str:
    return "no range" if domain is None else f"[{domain.low:g}, {domain.high:g}]"


def _shape(data: DataInfo) -> str:
    return "x".join(map(str, data.shape))
