"""Distance of samples to the subspace their clean data lie in, and how much of it they recover."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from advdiff_core import Build, Evaluation, Fault, Metric, RecipeError, Subspace
from advdiff_core.settings import setting, settings
from advdiff_robustadv.datasets_linear import NO_VARIANCE, principal_directions
from advdiff_robustadv.rays import SOURCE

__all__ = ["SubspaceDistance", "peak_of", "psnr", "recovery"]

#: Mean squared errors below this share of the squared peak are rounding of float32: 120 dB.
FLOOR = 1e-12


class SubspaceDistance(Metric):
    """How near samples come to a known subspace, and whether they span it.

    `subspace_distance`: mean Euclidean distance to the subspace, 0 at best; `subspace_psnr`: mean
    over samples of the PSNR (dB, at most 120) between a sample and its projection, higher is
    better; both also with `_data` for the data as the model saw them and `_clean`.
    `subspace_recovery`: share of the clean samples' variance that lies in the span of the samples'
    own first r principal directions, 1 at best; `subspace_angle`: largest principal angle between
    that span and the subspace in degrees, 0 at best. `subspace_std_ratio`: root of the samples'
    variance inside the subspace over that of clean ones; 1 at best, less where samples shrink.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings:
        """Keys of `use = "subspace"`."""

        components: int = setting(
            0, ge=0, unit="dimensions",
            help="fit a subspace of this dimension to the clean samples; 0: the dataset's own",
        )  # fmt: skip

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        data = build.data
        width = torch.Size(data.shape).numel() if data is not None else 0
        if settings.components > width:
            self._refuse(f"{settings.components} dimensions of {width} are asked for", width)
        if not settings.components and (data is None or data.subspace is None):
            self._refuse("the dataset knows no subspace that its samples lie in", min(2, width))

    def _refuse(self, message: str, example: int) -> None:
        fix = f"write components = {example} to fit one, or take data that know theirs"
        fault = Fault(code="R10", key=f"{self.build.path}.components", message=message, fix=fix)
        raise RecipeError([fault])

    def protocol(self) -> Mapping[str, object]:
        """Whose subspace, and how numbers are pooled."""
        fitted = self.settings.components
        return {
            "subspace": f"{fitted} principal directions of the clean samples"
            if fitted
            else "known",
            "distance": "Euclidean, mean over samples",
            "psnr": "of a sample to its projection, mean over samples in dB, at most 120",
            "recovery": "share of clean variance in the samples' own principal directions",
        }

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Distances, PSNR, recovery and angle by name; see the class for which way is better."""
        clean = evaluation.clean
        known = evaluation.remember(
            ("subspace", self.settings.components), lambda: self._subspace(evaluation)
        )
        count, inside = len(evaluation.samples), len(known.basis)
        evaluation.note(f"{inside} dimensions, {100 * known.explained:.4g} % of the variance")
        if count <= inside:
            evaluation.note(f"{count} samples cannot span {inside} dimensions")
        peak = peak_of(evaluation)
        numbers: dict[str, float] = {}
        for end, x in {"": evaluation.samples, "_data": evaluation.data, "_clean": clean}.items():
            squared = _squared_distance(x, known)
            numbers[f"subspace_distance{end}"] = float(squared.sqrt().mean())
            numbers[f"subspace_psnr{end}"] = float(psnr(squared / x[0].numel(), peak).mean())
        return {**numbers, **recovery(evaluation.samples, clean, known)}

    def _subspace(self, evaluation: Evaluation) -> Subspace:
        wanted = self.settings.components
        if not wanted:
            known = evaluation.info.subspace
            assert known is not None, "checked when built"
            return known
        mean, basis, variances = principal_directions(evaluation.clean.flatten(1), wanted)
        total = float(variances.sum())
        share = float(variances[:wanted].sum()) / total if total else 1.0
        return Subspace(origin=mean, basis=basis, explained=share)


def _squared_distance(x: Tensor, known: Subspace) -> Tensor:
    """Squared distance of samples `x` [N, ...] to the subspace [N], float64."""
    flat = x.flatten(1).double()
    return (flat - known.nearest(flat)).square().sum(dim=1)


def peak_of(evaluation: Evaluation) -> float:
    """Span of the data's domain; without one, between the smallest and largest clean value."""
    domain = evaluation.info.domain
    if domain is not None and math.isfinite(domain.span):
        return domain.span
    low, high = float(evaluation.clean.min()), float(evaluation.clean.max())
    return high - low if high > low else 1.0


def psnr(error: Tensor, peak: float) -> Tensor:
    """Peak signal-to-noise ratio `10 log10(peak^2 / error)` in dB [N], at most 120.

    Args:
        error: Mean squared errors [N].
        peak: Width of the range of values.
    """
    return -10 * torch.log10((error / peak**2).clamp_min(FLOOR))


def recovery(samples: Tensor, clean: Tensor, known: Subspace) -> dict[str, float]:
    """Recovered share, largest principal angle and ratio of spreads.

    Cosines of principal angles are the singular values of the product of two orthonormal bases
    (Bjorck and Golub, 1973).

    Args:
        samples: Samples [N, ...].
        clean: Clean samples [M, ...].
        known: The subspace.
    """
    wanted = len(known.basis)
    _, found, variances = principal_directions(samples.flatten(1), wanted)
    # A direction in which samples do not vary is none that they found.
    found = found[: int((variances[:wanted] > NO_VARIANCE * variances[0]).sum())]
    inside = (clean.flatten(1).double() - known.origin) @ known.basis.T
    inside = inside - inside.mean(dim=0)
    product = found @ known.basis.T
    total = float(inside.square().sum())
    cosine = torch.linalg.svdvals(product).min() if len(found) == wanted else product.new_zeros(())
    ours = (samples.flatten(1).double() - known.origin) @ known.basis.T
    spread = ours.var(dim=0, correction=0).sum().sqrt()
    theirs = inside.var(dim=0, correction=0).sum().sqrt()
    return {
        "subspace_recovery": float((inside @ product.T).square().sum()) / total if total else 0.0,
        "subspace_angle": math.degrees(math.acos(min(1.0, float(cosine)))),
        "subspace_std_ratio": float(spread / theirs) if total else 0.0,
    }
