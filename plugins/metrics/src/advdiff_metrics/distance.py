"""The Frechet distance of images in features, against data or stored statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation
from advdiff_core.math.statistics import Moments, frechet_distance
from advdiff_core.types import Domain
from advdiff_metrics.extractor import Extractor, moments_of
from advdiff_metrics.images import check_images
from advdiff_metrics.reference import Reference, cached, read_reference

__all__ = ["FeatureDistance"]


class FeatureDistance:
    """What the metrics `fid`, `fd` and `fd-lite` share.

    Args:
        name: Name of the number.
        extractor: The feature space.
        settings: Settings with `against`, `images`, `reference` and `batch`.
        build: What the metric was told.
    """

    def __init__(self, name: str, extractor: Extractor, settings: Any, build: Build) -> None:
        check_images(build)
        extractor.check()
        assert build.data is not None
        assert build.data.domain is not None
        self.name, self.extractor, self.settings = name, extractor, settings
        self.where = build.path
        self.domain: Domain = build.data.domain
        self.shape = list(build.data.shape)
        self.count = min(settings.images, build.data.count)
        self.stored: Reference | None = None
        if settings.reference is not None:
            self.stored = read_reference(settings.reference, self.provenance(), self.where)

    def provenance(self) -> dict[str, object]:
        """What features depend on."""
        return {**self.extractor.provenance(), "bits": "rounded to 8", "shape": self.shape}

    def protocol(self) -> Mapping[str, object]:
        """See `Metric.protocol`."""
        return {
            "distance": "squared Frechet distance of Gaussians, float64, covariance over N - 1",
            **self.provenance(),
            "against": self._against(),
            "reference": self._count(),
            "bias": "too large for few samples; compare equal counts only",
        }

    def _against(self) -> str:
        if self.stored is None:
            return str(self.settings.against)
        return f"stored statistics of data {self.stored.provenance.get('data')}"

    def _count(self) -> int:
        """Real images compared with."""
        return self.count if self.stored is None else self.stored.moments.count

    def compute(self, evaluation: Evaluation) -> dict[str, float]:
        """See `Metric.compute`."""
        samples = self._moments(evaluation, evaluation.samples)
        if self.stored is not None:
            real = self.stored.moments
        elif self.settings.against == "data":
            real = self._seen(evaluation)
        else:
            real = self._clean(evaluation)
        self._remark(evaluation, samples, "samples")
        self._remark(evaluation, real, "real images")
        found = {self.name: frechet_distance(samples, real)}
        damaged = evaluation.data is not evaluation.clean
        if self.stored is None and self.settings.against == "clean" and damaged:
            found[f"{self.name}_data"] = frechet_distance(self._seen(evaluation), real)
        return found

    def _remark(self, evaluation: Evaluation, moments: Moments, what: str) -> None:
        if moments.is_deficient:
            evaluation.note(
                f"{moments.count} {what} for {len(moments.mean)} features: the covariance has not "
                "its full rank, the distance is far too large"
            )

    def _clean(self, evaluation: Evaluation) -> Moments:
        x = evaluation.clean[: self.count]
        told = {**self.provenance(), "count": len(x), "data": evaluation.fingerprint}

        def read() -> Moments:
            name = self.extractor.name
            return cached(
                evaluation.folder, name, told, lambda: self._moments(evaluation, x), self.where
            )

        return evaluation.remember(("clean", str(told)), read)

    def _seen(self, evaluation: Evaluation) -> Moments:
        if evaluation.data is evaluation.clean:
            return self._clean(evaluation)
        x = evaluation.data[: self.count]
        key = ("data", str(self.provenance()), len(x))
        return evaluation.remember(key, lambda: self._moments(evaluation, x))

    def _moments(self, evaluation: Evaluation, x: Tensor) -> Moments:
        return moments_of(
            self.extractor, x, self.domain, batch=self.settings.batch, device=evaluation.device
        )
