"""How near samples come to the training images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advdiff_core.errors import StorageError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.neighbours import Nearest, nearest_of
from advdiff_metrics.pictures import memorization_picture
from advdiff_metrics.spaces import FEATURES_HELP, Space, space_of

__all__ = ["Memorization"]

QUANTILES = (0.5, 0.95, 0.99, 1.0)
BINS = 50
#: Quantile of the training images among themselves above which a likeness counts as a copy.
USUAL = 0.99
#: Samples shown and listed with their nearest training image.
PAIRS = 8


class Memorization(Metric):
    """Cosine similarity of samples to their nearest training image; high where images are copied.

    `memorization_q50`, `_q95`, `_q99` and `_q100`: quantiles over samples; `memorization_share`:
    the share above a threshold. `..._data`: the same of training images and their nearest other
    one, what independent samples would have. The threshold is the 99 % quantile of those, if it is
    not given. `memorization.json` (histograms, the nearest pairs) and `memorization.png` are
    written into the run folder, for the last range of seeds. Likeness in features is no proof of a
    copy: look at the pairs.
    """

    @settings
    class Settings:
        """Keys of `use = "memorization"`."""

        features: str = setting("lite", help=FEATURES_HELP)
        weights: Path | None = setting(None, help="file of weights")
        download: bool = setting(False, help="fetch the weights from the network")
        unpublished: bool = setting(False, help="take other or random weights")
        size: int = setting(
            0, ge=0, le=4096, unit="pixels", help="images are resized to this; 0: the network's own"
        )
        threshold: float | None = setting(
            None, ge=-1, le=1, help="similarity of a copy; from the training images if left out"
        )
        images: int = setting(
            50_000, ge=2, unit="images", help="the first so many training images are searched"
        )
        batch: int = setting(64, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._space = Space(space_of(settings, build), settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Features, similarity, threshold, images searched."""
        given = self.settings.threshold
        usual = f"{100 * USUAL:g} % quantile of training images and their nearest other one"
        return {
            "similarity": "cosine, largest over the training images",
            **self._space.protocol(),
            "threshold": usual if given is None else given,
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Quantiles and shares by name; lower is better."""
        found = nearest_of(self._space.samples(evaluation), self._space.clean(evaluation))
        usual = evaluation.remember(
            ("nearest", str(self.protocol())), lambda: self._among(evaluation)
        )
        given = self.settings.threshold
        threshold = _quantile(usual.similarity, USUAL) if given is None else given
        if self._space.count < evaluation.info.count:
            evaluation.note(f"{self._space.count} of {evaluation.info.count} images were searched")
        self._write(evaluation, found, usual, threshold)
        return {
            **_numbers(found.similarity, threshold, ""),
            **_numbers(usual.similarity, threshold, "_data"),
            "memorization_threshold": threshold,
        }

    def _among(self, evaluation: Evaluation) -> Nearest:
        """The training images and their nearest other one."""
        features = self._space.clean(evaluation)
        return nearest_of(features, features, same=True)

    def _write(
        self, evaluation: Evaluation, found: Nearest, usual: Nearest, threshold: float
    ) -> None:
        """Put the histograms and the nearest pairs into the run folder."""
        told = _record(found, usual, threshold)
        rows = [pair["sample"] for pair in told["nearest"]]
        columns = [pair["training_image"] for pair in told["nearest"]]
        picture = memorization_picture(
            told, evaluation.samples[rows], evaluation.clean[columns], self._space.domain
        )
        path = evaluation.folder / "memorization.json"
        try:
            path.write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")
            picture.save(path.with_suffix(".png"))
        except OSError as cause:
            message = f"cannot be written: {cause}"
            raise StorageError(
                message, code="S04", where=str(path), fix="free the place"
            ) from cause


def _numbers(similarity: Tensor, threshold: float, end: str) -> dict[str, float]:
    quantiles = {f"memorization_q{100 * q:g}{end}": _quantile(similarity, q) for q in QUANTILES}
    share = float((similarity.double() > threshold).double().mean())
    return {**quantiles, f"memorization_share{end}": share}


def _quantile(values: Tensor, q: float) -> float:
    """A quantile by linear interpolation; torch's own refuses more than 16 million values."""
    ordered = values.double().sort().values
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


def _record(found: Nearest, usual: Nearest, threshold: float) -> dict[str, Any]:
    both = torch.cat([found.similarity, usual.similarity]).double()
    low, high = float(both.min()), max(float(both.max()), float(both.min()) + 1e-6)
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    order = found.similarity.argsort(descending=True, stable=True)[:PAIRS]
    return {
        "threshold": threshold,
        "edges": edges.tolist(),
        "samples": _histogram(found.similarity, edges),
        "training_images": _histogram(usual.similarity, edges),
        "nearest": [
            {
                "sample": int(row),
                "training_image": int(found.row[row]),
                "similarity": float(found.similarity[row]),
            }
            for row in order
        ],
    }


def _histogram(values: Tensor, edges: Tensor) -> list[float]:
    """Share of values [N] in each bin of `edges` [K + 1]; the last bin holds its upper end."""
    places = torch.bucketize(values.double(), edges[1:-1], right=True)
    counts = torch.bincount(places, minlength=len(edges) - 1)
    return (counts.double() / len(values)).tolist()
