"""Distance of points to a plane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advdiff_core.datasets.points import plane_basis
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.metric import Evaluation, Metric
from advdiff_core.math.statistics import Moments, root_mean_square
from advdiff_core.settings import setting, settings

__all__ = ["PlaneDistance"]


class PlaneDistance(Metric):
    """Distance of points to the plane the clean points lie on, and how far they shrink inside it.

    `plane_distance`: mean |n.x - offset| of the samples; `plane_off_share`: share of them farther
    than `threshold` (both lower is better, 0 at best); the same with `_data` for the data as the
    model saw them and `_clean`. `plane_std`, `plane_std_clean`: root mean variance inside the
    plane; `plane_std_ratio`: their quotient, best at 1, lower where samples shrink.
    """

    @settings
    class Settings:
        """Keys of `use = "plane-distance"`."""

        normal: tuple[float, ...] = setting(
            (), help="normal of the plane, of any length; empty: fitted to the clean points"
        )
        offset: float = setting(
            0.0, help="distance of the plane from 0 along the unit normal, if `normal` is given"
        )
        threshold: float = setting(0.1, help="farther points count as off the plane", gt=0)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        shape = build.data.shape if build.data is not None else ()
        message = ""
        if len(shape) != 1 or shape[0] < 2:
            message = f'"plane-distance" needs points, the data have shape {list(shape)}'
        elif settings.normal and len(settings.normal) != shape[0]:
            message = f"normal has {len(settings.normal)} numbers, points have {shape[0]}"
        elif settings.normal and not any(settings.normal):
            message = "normal: all numbers are 0"
        if message:
            raise RecipeError([Fault(code="R10", key=build.path, message=message)])

    def protocol(self) -> Mapping[str, object]:
        """Plane and threshold."""
        given = list(self.settings.normal)
        return {
            "plane": "fitted to the clean points" if not given else "given",
            "normal": given,
            "offset": self.settings.offset if given else None,
            "threshold": self.settings.threshold,
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances, shares and deviations by name."""
        clean = evaluation.clean.double()
        normal, offset = self._plane(clean)
        basis = plane_basis(normal)
        views = {"": evaluation.samples, "_data": evaluation.data, "_clean": clean}
        numbers: dict[str, float] = {}
        for end, x in views.items():
            distance = (x.double() @ normal - offset).abs()
            numbers[f"plane_distance{end}"] = float(distance.mean())
            off = distance > self.settings.threshold
            numbers[f"plane_off_share{end}"] = float(off.double().mean())
        spread = [
            root_mean_square((x.double() @ basis.T).std(dim=0)) for x in (evaluation.samples, clean)
        ]
        numbers["plane_std"], numbers["plane_std_clean"] = spread
        numbers["plane_std_ratio"] = spread[0] / spread[1] if spread[1] else float("nan")
        return numbers

    def _plane(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        if not self.settings.normal:
            return fit_plane(clean)
        normal = torch.tensor(self.settings.normal, dtype=torch.float64)
        return normal / normal.norm(), torch.tensor(self.settings.offset, dtype=torch.float64)


def fit_plane(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normal [D] and offset of the hyperplane nearest to points [N, D] (least squares)."""
    moments = Moments.of(x)
    normal = torch.linalg.eigh(moments.covariance).eigenvectors[:, 0]
    return normal, normal @ moments.mean
