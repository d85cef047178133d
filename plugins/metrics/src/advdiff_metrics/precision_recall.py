"""Precision and recall of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.errors import DataError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.spaces import FEATURES_HELP, Space, space_of

__all__ = ["PrecisionRecall"]


class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkaanniemi et al. 2019): shares in [0, 1], 1 at best.

    `precision`: share of samples inside a ball around some real image that reaches its k-th nearest
    real neighbour; `recall`: the same the other way round. Computed by torch-fidelity. The paper
    used VGG features, guided diffusion Inception's; in other features than the published
    Inception's the names end in `_<features>`.
    """

    @settings
    class Settings:
        """Keys of `use = "precision-recall"`."""

        features: str = setting("inception", help=FEATURES_HELP)
        weights: Path | None = setting(None, help="file of weights")
        download: bool = setting(False, help="fetch the weights from the network")
        unpublished: bool = setting(False, help="take other or random weights")
        size: int = setting(
            0, ge=0, le=4096, unit="pixels", help="images are resized to this; 0: the network's own"
        )
        neighbours: int = setting(3, ge=1, le=1_000, help="k: neighbours that a ball reaches")
        images: int = setting(
            10_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        batch: int = setting(64, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._space = Space(space_of(settings, build), settings, build)
        self._end = "" if self._space.is_fids else f"_{self._space.slug}"

    def protocol(self) -> Mapping[str, object]:
        """Features and neighbours."""
        return {
            "measure": "share within the distance of the k-th nearest neighbour, Euclidean",
            **self._space.protocol(),
            "neighbours": self.settings.neighbours,
            "bias": "depends on both counts; compare equal counts only",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares by name; higher is better."""
        from torch_fidelity.metric_prc import prc_features_to_metric

        samples, clean = self._space.samples(evaluation), self._space.clean(evaluation)
        least = min(len(samples), len(clean))
        if least <= self.settings.neighbours:
            message = f"{least} images have no {self.settings.neighbours} neighbours"
            fix = "raise evaluate.num, or lower neighbours"
            raise DataError(message, code="D01", where=self.build.path, fix=fix)
        # Parts of 1,000 rows: with 50,000 images a block of distances takes 200 MB.
        found = prc_features_to_metric(
            samples, clean, prc_neighborhood=self.settings.neighbours, prc_batch_size=1_000,
            save_cpu_ram=True, verbose=False,
        )  # fmt: skip
        return {f"precision{self._end}": found["precision"], f"recall{self._end}": found["recall"]}
