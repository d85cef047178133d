"""Sliced Wasserstein distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.math.statistics import sliced_wasserstein
from advdiff_core.settings import setting, settings

__all__ = ["SlicedWasserstein"]


class SlicedWasserstein(Metric):
    """Sliced 2-Wasserstein distance of samples and real data, in the data's units; 0 at best.

    `sliced_wasserstein`: samples to the reference. `sliced_wasserstein_data`: the data as the model
    saw them to the clean ones, what samples have to beat.
    """

    decoded: ClassVar[bool] = False

    @settings
    class Settings:
        """Keys of `use = "sliced-wasserstein"`."""

        projections: int = setting(256, help="random directions", ge=1, le=1_000_000)
        seed: int = setting(0, help="chooses the directions", ge=0)
        against: str = setting(
            "clean", help="clean: data without corruption; data: as seen", choices=("clean", "data")
        )

    def protocol(self) -> Mapping[str, object]:
        """Directions, seed, reference."""
        return {
            "distance": "root mean of squared 1-D 2-Wasserstein distances, exact",
            "features": "values as they are",
            "projections": self.settings.projections,
            "seed": self.settings.seed,
            "against": self.settings.against,
            "bias": "too large for few samples; compare equal counts only",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances by name; lower is better."""
        width = evaluation.clean[0].numel()
        generator = keyed_generator("sliced-wasserstein", self.settings.seed)
        shape = (self.settings.projections, width)
        directions = torch.randn(shape, generator=generator, dtype=torch.float64)
        samples, clean, data = evaluation.samples, evaluation.clean, evaluation.data
        if self.settings.against == "data":
            distance = sliced_wasserstein(samples, data, directions)
            return {"sliced_wasserstein_to_data": distance}
        return {
            "sliced_wasserstein": sliced_wasserstein(samples, clean, directions),
            "sliced_wasserstein_data": sliced_wasserstein(data, clean, directions),
        }
