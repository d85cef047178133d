"""Inception score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.inception import InceptionExtractor
from advdiff_metrics.spaces import Space

__all__ = ["InceptionScore"]


class InceptionScore(Metric):
    """Inception score (Salimans et al. 2016): exp of the mean KL(p(y|x), p(y)); higher is better.

    `inception_score`: mean over splits; `inception_score_std`: over the splits. It looks at samples
    alone, never at the data, so it is no measure of likeness to them. Computed by torch-fidelity.
    With weights that are not the published ones the names end in `_unpublished`.
    """

    @settings
    class Settings:
        """Keys of `use = "inception-score"`."""

        weights: Path | None = setting(None, help="file of weights; torch.hub's cache if left out")
        download: bool = setting(False, help="fetch the weights into that cache")
        unpublished: bool = setting(False, help="take other weights: no inception score then")
        splits: int = setting(10, ge=1, help="parts the samples are split into")
        seed: int = setting(2020, ge=0, lt=2**32, help="deals the samples to the splits")
        batch: int = setting(64, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        extractor = InceptionExtractor(
            settings.weights, download=settings.download, unpublished=settings.unpublished,
            layer="logits_unbiased", where=build.path,
        )  # fmt: skip
        self._space = Space(extractor, settings, build, images=0)
        self._end = "" if extractor.is_published else "_unpublished"

    def protocol(self) -> Mapping[str, object]:
        """Network, splits and their seed."""
        return {
            "score": "exp of mean KL(p(y|x), p(y)), mean over splits",
            **self._space.protocol(),
            "against": "nothing",
            "reference": 0,
            "splits": self.settings.splits,
            "seed": self.settings.seed,
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Score and its standard deviation; higher is better."""
        from torch_fidelity.metric_isc import (
            KEY_METRIC_ISC_MEAN,
            KEY_METRIC_ISC_STD,
            isc_features_to_metric,
        )

        logits = self._space.in_order(self._space.samples(evaluation))
        splits = min(self.settings.splits, len(logits))
        if splits < self.settings.splits:
            evaluation.note(f"{splits} splits: there are no more samples")
        found = isc_features_to_metric(logits, splits, True, self.settings.seed)
        return {
            f"inception_score{self._end}": found[KEY_METRIC_ISC_MEAN],
            f"inception_score_std{self._end}": found[KEY_METRIC_ISC_STD],
        }
