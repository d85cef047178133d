"""Corruptions: lasting damage to a fraction of the samples.

Which samples are damaged is a permutation of all indices keyed by name and seed, cut at
`round(fraction * count)`: the fraction is exact, and a larger one damages the same samples and
more. The damage of a sample is drawn from a generator keyed by (name, seed, index), so it is the
same in any order, batch, worker and process. The seed of the run plays no part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from advdiff_core.draws import keyed_generator, permutation
from advdiff_core.errors import Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Corruption
from advdiff_core.settings import setting, settings

__all__ = ["GaussianNoise", "SaltPepper", "UniformOutliers"]

#: Draws of small data are kept: making a generator per sample costs about 5 microseconds each time.
KEEP_BYTES = 64 * 2**20

Draw = Callable[[tuple[int, ...], torch.Generator], Tensor]


def _fraction(what: str) -> Any:
    return setting(1.0, help=f"share of the samples {what}", ge=0, le=1)


def _seed() -> Any:
    return setting(0, help="chooses the samples and their damage; the run's seed does not", ge=0)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


class GaussianNoise(Corruption):
    """Adds Gaussian noise to a fraction of the samples, once and for all; nothing is clipped."""

    @settings
    class Settings:
        """Keys of `use = "gaussian"`."""

        fraction: float = _fraction("that get noise")
        std: float = setting(help="standard deviation, in units of the data's values", ge=0)
        direction: tuple[float, ...] = setting(
            (), help="noise acts along this vector (of any length) alone; empty: along every axis"
        )
        seed: int = _seed()

        def __attrs_post_init__(self) -> None:
            if self.direction and not any(self.direction):
                message = "direction: all numbers are 0"
                raise ValueError(message)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._damage = _Damage("gaussian", settings, build, _normal)
        self._along = self._unit_direction()

    def _unit_direction(self) -> Tensor | None:
        direction, data = self.settings.direction, self.build.data
        if not direction:
            return None
        assert data is not None, "a corruption is built after its dataset"
        if data.shape != (len(direction),):
            fault = Fault(
                code="R10",
                key=f"{self.build.path}.direction",
                message=f"found {len(direction)} numbers, the data have shape {list(data.shape)}",
                fix="give one number per coordinate of a point",
            )
            raise RecipeError([fault])
        return torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float64), dim=0)

    def corrupt(self, x: Tensor, indices: Tensor) -> Tensor:
        """Noised copies; see `Corruption.corrupt`."""
        return self._damage.blend(x, indices, self._add)

    def _add(self, x: Tensor, z: Tensor) -> Tensor:
        if self._along is not None:
            # The first number of a sample is its distance along the direction.
            z = z[:, :1] * self._along.to(z)
        return x + self.settings.std * z

    def affected(self, indices: Tensor) -> Tensor:
        """See `Corruption.affected`."""
        return self._damage.affected(indices)


class UniformOutliers(Corruption):
    """Replaces a fraction of the samples by uniform noise in a box."""

    @settings
    class Settings:
        """Keys of `use = "uniform-outliers"`."""

        fraction: float = _fraction("that are replaced")
        low: float = setting(-1.0, help="lower end of the box")
        high: float = setting(1.0, help="upper end of the box")
        seed: int = _seed()

        def __attrs_post_init__(self) -> None:
            if self.low >= self.high:
                message = f"low: {self.low} must be below high = {self.high}"
                raise ValueError(message)

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._damage = _Damage("uniform-outliers", settings, build, _uniform)

    def corrupt(self, x: Tensor, indices: Tensor) -> Tensor:
        """Copies with outliers; see `Corruption.corrupt`."""
        low, span = self.settings.low, self.settings.high - self.settings.low
        return self._damage.blend(x, indices, lambda _, u: low + span * u)

    def affected(self, indices: Tensor) -> Tensor:
        """See `Corruption.affected`."""
        return self._damage.affected(indices)


class SaltPepper(Corruption):
    """Sets pixels, all channels at once, to the lowest or highest value of the data's range."""

    images_only: ClassVar[bool] = True

    @settings
    class Settings:
        """Keys of `use = "salt-pepper"`."""

        fraction: float = _fraction("that are damaged")
        amount: float = setting(
            help="share of pixels set; each end of the range gets half", ge=0, le=1
        )
        seed: int = _seed()

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._damage = _Damage("salt-pepper", settings, build, _uniform, pixels=True)
        domain = build.data.domain if build.data is not None else None
        if build.data is None or not build.data.is_image or domain is None:
            message = '"salt-pepper" needs images with a range of values'
            raise RecipeError([Fault(code="R10", key=f"{build.path}.use", message=message)])
        self._low, self._high = domain.low, domain.high

    def corrupt(self, x: Tensor, indices: Tensor) -> Tensor:
        """Damaged copies; see `Corruption.corrupt`."""
        return self._damage.blend(x, indices, self._strike)

    def affected(self, indices: Tensor) -> Tensor:
        """See `Corruption.affected`."""
        return self._damage.affected(indices)

    def _strike(self, x: Tensor, u: Tensor) -> Tensor:
        half = self.settings.amount / 2
        return x.masked_fill(u < half, self._low).masked_fill(u >= 1 - half, self._high)


class _Damage:
    """Which samples are hit, and the random numbers of each.

    Args:
        name: Name of the corruption, part of every key.
        settings: Its settings, with `fraction` and `seed`.
        build: What it was built with; the count and shape of the data are needed.
        draw: Makes the numbers of one sample.
        pixels: True for one number per pixel instead of one per value.
    """

    def __init__(
        self, name: str, settings: Any, build: Build, draw: Draw, *, pixels: bool = False
    ) -> None:
        assert build.data is not None, "a corruption is built after its dataset"
        self._key = (name, settings.seed)
        self._draw = draw
        self._shape = (1, *build.data.shape[1:]) if pixels else build.data.shape
        count = build.data.count
        self._hit = torch.zeros(count, dtype=torch.bool)
        self._hit[permutation(count, *self._key, "which")[: round(settings.fraction * count)]] = (
            True
        )
        keep = 4 * count * math.prod(self._shape) <= KEEP_BYTES
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def affected(self, indices: Tensor) -> Tensor:
        """Which samples are hit [B], bool."""
        return self._hit[indices.cpu()].to(indices.device)

    def blend(
        self, x: Tensor, indices: Tensor, damage: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Copies of `x` [B, ...] with `damage(x, numbers)` where a sample is hit."""
        mask = self.affected(indices)
        if not bool(mask.any()):
            return x.clone()
        numbers = torch.stack([self._numbers(index) for index in indices[mask].tolist()])
        out = x.clone()
        out[mask] = damage(x[mask], numbers.to(x))
        return out

    def _numbers(self, index: int) -> Tensor:
        if self._kept is None:
            return self._draw(self._shape, keyed_generator(*self._key, index))
        if index not in self._kept:
            self._kept[index] = self._draw(self._shape, keyed_generator(*self._key, index))
        return self._kept[index]
