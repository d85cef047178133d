"""Pictures of a run: what the data were, what the model saw, what it makes now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from advdiff_core.hooks.specs import RunInfo, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageGrids"]


@final
class ImageGrids:
    """Writes `images/<nimg>.png`: a captioned row each of real, corrupted and sampled images."""

    @hookimpl
    def images_ready(self, run: RunInfo, nimg: int, images: Mapping[str, Tensor]) -> None:
        """Write one picture."""
        from advdiff_core.hooks.pictures import rows_png

        domain = run.data.domain if run.data is not None else None
        run.write(f"images/{nimg:09d}.png", rows_png(list(images.items()), domain))
