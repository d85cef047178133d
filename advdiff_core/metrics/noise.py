"""How much noise is left in samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.math.statistics import noise_levels, root_mean_square
from advdiff_core.settings import setting, settings

__all__ = ["ResidualNoise"]


class ResidualNoise(Metric):
    """Standard deviation of the noise in samples, beyond what clean images seem to have; 0 at best.

    Second differences see noise, but also corners and texture: `noise_level`, `noise_level_clean`
    and `noise_level_data` are their sizes in samples, clean data and data as seen. `residual_noise`
    is `sqrt(level^2 - level_clean^2)` of the samples, `residual_noise_data` that of the data. Where
    the difference is negative so is the number: the samples are smoother than clean images.
    """

    @settings
    class Settings:
        """Keys of `use = "residual-noise"`."""

        estimator: str = setting(
            "mean-square",
            help="what is taken of second differences; mean-square is exact on average",
            choices=("mean-square", "immerkaer", "mad"),
        )

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        shape = build.data.shape if build.data is not None else ()
        if len(shape) != 3 or min(shape[1:]) < 3:
            message = f'"residual-noise" needs images of 3x3 or more, the data have {list(shape)}'
            raise RecipeError([Fault(code="R10", key=f"{build.path}.use", message=message)])

    def protocol(self) -> Mapping[str, object]:
        """Mask, estimator and reference."""
        return {
            "mask": "[[1, -2, 1], [-2, 4, -2], [1, -2, 1]] / 6 (Immerkaer 1996), every channel",
            "estimator": self.settings.estimator,
            "pooling": "root mean square over images",
            "against": "clean",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Standard deviations by name, in the data's units; `residual_noise` is best at 0."""
        samples, clean, data = (
            root_mean_square(noise_levels(x, self.settings.estimator))
            for x in (evaluation.samples, evaluation.clean, evaluation.data)
        )
        return {
            "residual_noise": excess(samples, clean),
            "residual_noise_data": excess(data, clean),
            "noise_level": samples,
            "noise_level_clean": clean,
            "noise_level_data": data,
        }


def excess(level: float, clean: float) -> float:
    """Root of the variance in `level` beyond that in `clean`, with its sign."""
    difference = level**2 - clean**2
    return math.copysign(math.sqrt(abs(difference)), difference)
