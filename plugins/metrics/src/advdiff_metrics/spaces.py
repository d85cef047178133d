"""The feature spaces that metrics may be asked for by name, and features of whole sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation
from advdiff_metrics.extractor import Extractor, features_of
from advdiff_metrics.faults import refused
from advdiff_metrics.images import check_images
from advdiff_metrics.inception import InceptionExtractor
from advdiff_metrics.lite import LiteExtractor
from advdiff_metrics.timm_features import TimmExtractor, unknown_model

__all__ = ["FEATURES_HELP", "Space", "space_of"]

FEATURES_HELP = "inception, lite (efficientnet-lite0, offline) or timm:<model>"


def space_of(settings: Any, build: Build, *, layer: str = "2048") -> Extractor:
    """The extractor that `settings.features` names.

    Args:
        settings: Settings with `features`, `weights`, `download`, `unpublished` and `size`.
        build: What the metric was told.
        layer: Layer of Inception.

    Raises:
        RecipeError: R10 if there is none of that name.
    """
    kind, _, model = settings.features.partition(":")
    if kind == "inception" and not model:
        return InceptionExtractor(
            settings.weights, download=settings.download, unpublished=settings.unpublished,
            layer=layer, where=build.path,
        )  # fmt: skip
    if kind == "lite" and not model:
        return LiteExtractor(settings.size or 224)
    complaint = unknown_model(model) if kind == "timm" else f"found {settings.features!r}"
    if complaint:
        raise refused(build, "features", complaint, f"write {FEATURES_HELP}")
    return TimmExtractor(
        model, weights=settings.weights, pretrained=settings.download,
        random=settings.unpublished and settings.weights is None and not settings.download,
        size=settings.size, where=build.path,
    )  # fmt: skip


class Space:
    """Features of whole sets of images in one extractor's space.

    Args:
        extractor: The network.
        settings: Settings with `batch`, and `images` if `images` is None.
        build: What the metric was told.
        images: Real images compared with.
    """

    def __init__(
        self, extractor: Extractor, settings: Any, build: Build, *, images: int | None = None
    ) -> None:
        check_images(build)
        extractor.check()
        assert build.data is not None
        assert build.data.domain is not None
        self.extractor, self.settings = extractor, settings
        self.domain = build.data.domain
        self.count = min(settings.images if images is None else images, build.data.count)

    @property
    def is_fids(self) -> bool:
        """True in the very features that FID is defined with."""
        return isinstance(self.extractor, InceptionExtractor) and self.extractor.is_published

    @property
    def slug(self) -> str:
        """What names of numbers end in, in other features."""
        if isinstance(self.extractor, InceptionExtractor):
            return "unpublished"
        return "lite" if isinstance(self.extractor, LiteExtractor) else self.extractor.name

    def protocol(self) -> dict[str, object]:
        """What the features depend on, and how many real images there are."""
        return {
            **self.extractor.provenance(),
            "bits": "rounded to 8",
            "against": "clean",
            "reference": self.count,
        }

    def samples(self, evaluation: Evaluation) -> Tensor:
        """Features [N, D] of the samples."""
        return self._features(evaluation, evaluation.samples)

    def clean(self, evaluation: Evaluation) -> Tensor:
        """Features [M, D] of clean data, kept for all metrics of the same extractor."""
        key = ("features", str(self.extractor.provenance()), self.count)
        return evaluation.remember(
            key, lambda: self._features(evaluation, evaluation.clean[: self.count])
        )

    def _features(self, evaluation: Evaluation, x: Tensor) -> Tensor:
        parts = features_of(
            self.extractor, x, self.domain, batch=self.settings.batch, device=evaluation.device
        )
        return torch.cat(list(parts))

    def in_order(self, features: Tensor) -> Tensor:
        """Rows [N, D] in an order of their own, so that drawn subsets know no order of samples."""
        return features[features.double().sum(1).argsort(stable=True)]
