"""Images projected to a linear subspace that is known: what a denoiser should find is known too."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advdiff_core import Batch, Build, DataInfo, Dataset, Domain, Fault, RecipeError, Spec, Subspace
from advdiff_core.math.statistics import Moments, batches
from advdiff_core.settings import setting, settings
from advdiff_robustadv.rays import SOURCE

__all__ = ["LinearizedImages", "principal_directions"]

#: Samples read and projected at once.
ROWS = 1024
#: The projected samples are held in memory, four bytes a value.
MAX_BYTES = 4 * 2**30
#: Directions with less than this share of the largest variance are rounding.
NO_VARIANCE = 1e-10


class LinearizedImages(Dataset):
    """Another dataset, projected to its principal components: clean samples of a known subspace.

    FOUND: the paper's controlled images (butterflies there) are projected by PCA, so that recovery
    of the subspace can be measured in many dimensions. DERIVED: projections leave the domain; they
    are scaled about its middle by the largest factor that brings all back (`fit = "shrink"`), which
    keeps them in an affine subspace, or the domain is widened. Computed in float64 when the
    data are opened, exactly, and held in memory.
    """

    source: ClassVar[str] = SOURCE

    @settings
    class Settings:
        """Keys of `use = "linearized-images"`."""

        images: Spec = setting(kind="dataset", help="the samples that are projected")
        components: int = setting(32, ge=1, help="dimensions of the subspace", unit="dimensions")
        fit: Literal["shrink", "widen"] = setting(
            "shrink", help="scale the projections into the domain, or widen the domain to them"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        inner = build.nested(settings.images)
        assert isinstance(inner, Dataset), "the loader looks it up among datasets"
        self.images = inner
        self._check_size(inner.info)
        x, self._y = _read(inner)
        origin, basis, explained = self._fitted(x)
        known = Subspace(origin=origin, basis=basis, explained=explained)
        self._x = torch.cat([known.nearest(part).float() for part in batches(x, ROWS)])
        self._info = self._described(inner.info, known)

    def _check_size(self, info: DataInfo) -> None:
        values = info.count * torch.Size(info.shape).numel()
        if 4 * values > MAX_BYTES:
            message = f"{info.count:,} samples of {list(info.shape)} need {4 * values:,} bytes"
            fix = f'at most {MAX_BYTES:,} are held: take a "subset", or a smaller size'
            raise self._refused("images", message, fix)

    def _fitted(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        wanted = self.settings.components
        mean, basis, variances = principal_directions(x, wanted)
        top = float(variances[0]) if len(variances) else 0.0
        rank = int((variances > NO_VARIANCE * top).sum())
        if wanted > rank:
            message = f"{wanted} dimensions are wanted, the samples vary in {rank}"
            raise self._refused("components", message, f"write components = {max(rank, 1)}")
        return mean, basis, float(variances[:wanted].sum() / variances.sum())

    def _described(self, info: DataInfo, known: Subspace) -> DataInfo:
        """What the samples are, once they and the domain fit each other."""
        domain = info.domain
        if domain is not None:
            middle = (domain.low + domain.high) / 2
            reach, half = float((self._x.double() - middle).abs().max()), domain.span / 2
            if self.settings.fit == "widen":
                domain = Domain(middle - max(reach, half), middle + max(reach, half))
            elif reach > half:
                known = self._shrunk(known, middle, half / reach)
        return DataInfo(
            shape=info.shape, count=info.count, domain=domain, classes=info.classes, subspace=known,
        )  # fmt: skip

    def _shrunk(self, known: Subspace, middle: float, factor: float) -> Subspace:
        self._x = (middle + factor * (self._x.double() - middle)).float()
        origin = middle + factor * (known.origin - middle)
        return Subspace(origin=origin, basis=known.basis, explained=known.explained)

    def _refused(self, key: str, message: str, fix: str) -> RecipeError:
        fault = Fault(code="R10", key=f"{self.build.path}.{key}", message=message, fix=fix)
        return RecipeError([fault])

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`; the subspace is exact up to the rounding of float32."""
        return self._info

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        x = self._x[indices].reshape(-1, *self._info.shape)
        return Batch(x, None if self._y is None else self._y[indices])

    def fingerprint(self) -> str:
        """Digest of the samples' own fingerprint and the settings."""
        made = self.settings
        text = f"linearized {self.images.fingerprint()} {made.components} {made.fit}"
        return hashlib.sha256(text.encode()).hexdigest()


def _read(data: Dataset) -> tuple[Tensor, Tensor | None]:
    """All samples [N, D] and labels [N] of a dataset."""
    parts = [data.batch(rows) for rows in batches(torch.arange(data.info.count), ROWS)]
    labels = [part.y for part in parts if part.y is not None]
    x = torch.cat([part.x.flatten(1) for part in parts])
    return x, torch.cat(labels) if labels else None


def principal_directions(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact principal component analysis in float64: no random projection, no iteration.

    Eigenvectors of the covariance, or of the Gram matrix where there are fewer samples than
    dimensions.

    Args:
        x: Samples [N, D].
        count: Directions wanted; fewer come back if there are not so many.

    Returns:
        Mean [D], orthonormal directions [r, D] of falling variance, all variances [min(N, D)].
    """
    if len(x) > x.shape[1]:
        moments = Moments.of(x)
        values, vectors = torch.linalg.eigh(moments.covariance)
        return moments.mean, vectors.flip(1).T[:count].contiguous(), values.flip(0).clamp_min(0)
    mean = x.double().mean(dim=0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred @ centred.T / max(len(x) - 1, 1))
    # The factor keeps the order of the directions and makes them orthonormal once more.
    directions = torch.linalg.qr(centred.T @ vectors.flip(1)[:, :count]).Q
    return mean, directions.T.contiguous(), values.flip(0).clamp_min(0)
