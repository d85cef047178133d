"""Kernel distance of samples and data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.settings import setting, settings
from advdiff_metrics.spaces import FEATURES_HELP, Space, space_of

__all__ = ["KID"]


class KID(Metric):
    """Kernel inception distance (Binkowski et al. 2018): unbiased, about 0 at best, may be below.

    `kid`: mean over subsets of the unbiased squared MMD with the kernel `(x . y / D + 1)^3`;
    `kid_std`: standard deviation over the subsets. Computed by torch-fidelity. In other features
    than the published Inception's the names are `kernel_distance_<features>` and so on.
    """

    @settings
    class Settings:
        """Keys of `use = "kid"`."""

        features: str = setting("inception", help=FEATURES_HELP)
        weights: Path | None = setting(None, help="file of weights")
        download: bool = setting(False, help="fetch the weights from the network")
        unpublished: bool = setting(False, help="take other or random weights: no KID then")
        size: int = setting(
            0, ge=0, le=4096, unit="pixels", help="images are resized to this; 0: the network's own"
        )
        subsets: int = setting(100, ge=1, help="subsets drawn")
        subset: int = setting(1_000, ge=2, unit="images", help="samples in each")
        seed: int = setting(2020, ge=0, lt=2**32, help="chooses the subsets")
        images: int = setting(
            50_000, ge=2, unit="images", help="the first so many real images are compared with"
        )
        batch: int = setting(64, ge=1, unit="images", help="images per forward")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._space = Space(space_of(settings, build), settings, build)
        named = self._space.is_fids
        self._name = "kid" if named else f"kernel_distance_{self._space.slug}"

    def protocol(self) -> Mapping[str, object]:
        """Features, kernel, subsets and their seed."""
        return {
            "distance": "unbiased MMD^2, kernel (x . y / D + 1)^3, mean over subsets",
            **self._space.protocol(),
            "subsets": self.settings.subsets,
            "subset": self.settings.subset,
            "seed": self.settings.seed,
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distance and its standard deviation; lower is better."""
        from torch_fidelity.metric_kid import (
            KEY_METRIC_KID_MEAN,
            KEY_METRIC_KID_STD,
            kid_features_to_metric,
        )

        samples = self._space.in_order(self._space.samples(evaluation))
        clean = self._space.in_order(self._space.clean(evaluation))
        size = min(self.settings.subset, len(samples), len(clean))
        if size < self.settings.subset:
            evaluation.note(f"subsets of {size}: there are no {self.settings.subset} images")
        found = kid_features_to_metric(
            samples, clean, kid_subsets=self.settings.subsets, kid_subset_size=size,
            rng_seed=self.settings.seed, verbose=False,
        )  # fmt: skip
        return {
            self._name: found[KEY_METRIC_KID_MEAN],
            f"{self._name}_std": found[KEY_METRIC_KID_STD],
        }
