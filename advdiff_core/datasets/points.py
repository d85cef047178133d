"""Synthetic points: `oblique-plane`, `gaussian-mixture`, `two-moons`.

Point i is drawn from (name, seed, i) alone, in blocks of 1,024 consecutive points, so more points
never change the earlier ones. The seed of the run plays no part. Points are clean; noise and
outliers are corruptions (`data.corrupt`), so that metrics know what was there before the damage.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from advdiff_core.draws import keyed_generator
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import setting, settings
from advdiff_core.types import Batch, DataInfo, Subspace

__all__ = ["GaussianMixture", "ObliquePlane", "TwoMoons"]

BLOCK = 1024


def _count() -> Any:
    return setting(20_000, help="number of points", ge=1, le=50_000_000, unit="points")


def _seed() -> Any:
    return setting(0, help="chooses the points; the run's seed does not", ge=0)


class ObliquePlane(Dataset):
    """Points of a plane n.x = offset in 3-D; by default z = (x + y) / 2 over the square [-1, 1]^2.

    Noise off the plane and outliers are corruptions:
    `corrupt = [{ use = "gaussian", std = 0.1, direction = [1, 1, -2] }]` and
    `corrupt = [{ use = "uniform-outliers", fraction = 0.1, low = -2, high = 2 }]`.
    """

    @settings
    class Settings:
        """Keys of `use = "oblique-plane"`."""

        count: int = _count()
        seed: int = _seed()
        normal: tuple[float, ...] = setting(
            (1.0, 1.0, -2.0), help="normal of the plane, three numbers of any length"
        )
        offset: float = setting(0.0, help="distance of the plane from 0, along the unit normal")
        coordinates: str = setting(
            "square",
            help="square: uniform in [-1, 1]; normal: standard normal; each times `extent`",
            choices=("square", "normal"),
        )
        extent: float = setting(1.0, help="scale of the two coordinates", gt=0)
        embedding: str = setting(
            "graph",
            help="graph: coordinates are x and y, z follows; isometric: lengths in the plane",
            choices=("graph", "isometric"),
        )

        def __attrs_post_init__(self) -> None:
            message = normal_fault(self.normal)
            if not message and self.embedding == "graph" and self.normal[2] == 0:
                message = 'a vertical plane has no z of x and y; write embedding = "isometric"'
            if message:
                raise ValueError(f"normal: {message}")

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        normal = torch.tensor(settings.normal, dtype=torch.float64)
        self._normal = normal / normal.norm()
        self._table = _Table("oblique-plane", settings, self._draw)
        self._plane = Subspace(
            origin=settings.offset * self._normal, basis=plane_basis(self._normal)
        )

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`; the subspace is the plane."""
        return DataInfo(shape=(3,), count=self.settings.count, subspace=self._plane)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return self._table.batch(indices)

    def fingerprint(self) -> str:
        """Digest of all points."""
        return self._table.fingerprint()

    def _draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, None]:
        if self.settings.coordinates == "square":
            flat = 2 * torch.rand(size, 2, generator=generator, dtype=torch.float64) - 1
        else:
            flat = torch.randn(size, 2, generator=generator, dtype=torch.float64)
        flat = self.settings.extent * flat
        if self.settings.embedding == "graph":
            a, b, c = self._normal.tolist()
            height = (self.settings.offset - a * flat[:, 0] - b * flat[:, 1]) / c
            return torch.cat([flat, height[:, None]], dim=1), None
        return flat @ plane_basis(self._normal) + self.settings.offset * self._normal, None


def normal_fault(normal: tuple[float, ...]) -> str:
    """Why a tuple is no normal of a plane in 3-D; "" if it is one."""
    if len(normal) != 3:
        return f"found {len(normal)} numbers, wanted 3"
    return "" if any(normal) else "all numbers are 0"


def plane_basis(normal: Tensor) -> Tensor:
    """Orthonormal directions [D - 1, D] inside the hyperplane with unit normal [D].

    The rows of the Householder reflection that maps the axis of the largest entry to the normal.
    """
    axis = int(normal.abs().argmax())
    unit = torch.zeros_like(normal)
    unit[axis] = -torch.sign(normal[axis])
    v = normal - unit
    reflection = torch.eye(len(normal)).to(normal) - 2 * torch.outer(v, v) / (v @ v)
    return torch.cat([reflection[:axis], reflection[axis + 1 :]])


class GaussianMixture(Dataset):
    """Equally likely Gaussian modes on a circle of the first two axes; the label is the mode."""

    @settings
    class Settings:
        """Keys of `use = "gaussian-mixture"`."""

        count: int = _count()
        seed: int = _seed()
        modes: int = setting(8, help="number of modes", ge=1, le=100_000)
        radius: float = setting(1.0, help="radius of the circle", ge=0)
        std: float = setting(0.05, help="standard deviation of a mode, along every axis", ge=0)
        dims: int = setting(2, help="number of coordinates", ge=2, le=100_000)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._table = _Table("gaussian-mixture", settings, self._draw)

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        shape = (self.settings.dims,)
        return DataInfo(shape=shape, count=self.settings.count, classes=self.settings.modes)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return self._table.batch(indices)

    def fingerprint(self) -> str:
        """Digest of all points and labels."""
        return self._table.fingerprint()

    def _draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        modes, dims = self.settings.modes, self.settings.dims
        mode = torch.randint(modes, (size,), generator=generator)
        angle = 2 * math.pi * mode.double() / modes
        x = self.settings.std * torch.randn(size, dims, generator=generator, dtype=torch.float64)
        x[:, 0] += self.settings.radius * angle.cos()
        x[:, 1] += self.settings.radius * angle.sin()
        return x, mode


class TwoMoons(Dataset):
    """Two interleaved half circles of radius 1 around 0; the label is the moon.

    The upper moon is (cos a, sin a), the lower (1 - cos a, 1/2 - sin a), a uniform in [0, pi], both
    moved by (-1/2, -1/4) so that the mean is 0.
    """

    @settings
    class Settings:
        """Keys of `use = "two-moons"`."""

        count: int = _count()
        seed: int = _seed()
        std: float = setting(0.05, help="standard deviation around the moons", ge=0)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._table = _Table("two-moons", settings, self._draw)

    @property
    def info(self) -> DataInfo:
        """See `Dataset.info`."""
        return DataInfo(shape=(2,), count=self.settings.count, classes=2)

    def batch(self, indices: Tensor) -> Batch:
        """See `Dataset.batch`."""
        return self._table.batch(indices)

    def fingerprint(self) -> str:
        """Digest of all points and labels."""
        return self._table.fingerprint()

    def _draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        moon = torch.randint(2, (size,), generator=generator)
        angle = math.pi * torch.rand(size, generator=generator, dtype=torch.float64)
        side = 1.0 - 2.0 * moon
        x = torch.stack([moon + side * angle.cos(), moon / 2 + side * angle.sin()], dim=1)
        x = x - torch.tensor([0.5, 0.25], dtype=torch.float64)
        noise = torch.randn(size, 2, generator=generator, dtype=torch.float64)
        return x + self.settings.std * noise, moon


class _Table:
    """All points of a dataset, drawn once and held in one tensor.

    Args:
        name: Name of the dataset, part of every key.
        settings: Its settings, with `count` and `seed`.
        draw: Points [B, D], float64, and labels [B] or None of one block.
    """

    def __init__(
        self,
        name: str,
        settings: Any,
        draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]],
    ) -> None:
        blocks = [
            draw(BLOCK, keyed_generator(name, settings.seed, block))
            for block in range(-(-settings.count // BLOCK))
        ]
        self._key = f"{name} {attrs.asdict(settings)}"
        self._x = torch.cat([x.float() for x, _ in blocks])[: settings.count]
        labels = [y for _, y in blocks if y is not None]
        self._y = torch.cat(labels)[: settings.count] if labels else None

    def batch(self, indices: Tensor) -> Batch:
        """Points [B, D] and labels [B] at `indices` [B]."""
        return Batch(self._x[indices], None if self._y is None else self._y[indices])

    def fingerprint(self) -> str:
        """Digest of settings, points and labels."""
        parts = [self._key.encode(), self._x.numpy().tobytes()]
        parts += [] if self._y is None else [self._y.numpy().tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()
