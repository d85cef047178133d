"""Training times of consistency models: two neighbours of a grid that is refined in training."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_atdiff.consistency_function import FunctionKeys, noise_ratio
from advdiff_core import Build, Times, TimeSampler
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.math import grids
from advdiff_core.settings import setting, settings

__all__ = ["ConsistencyGrid", "doubling_levels", "root_levels"]

_GROWS = ("root", "doubling")


def root_levels(share: float, s0: int, s1: int) -> int:
    """Noise levels N after a share of the training (Song et al., 2023, section 6.1).

    FOUND: `N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1`, from s0 to s1 + 1.

    Args:
        share: `k / K`, in [0, 1].
        s0: Levels at the start, at least 2.
        s1: Levels at the end, less one.
    """
    return math.ceil(math.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def doubling_levels(done: int, total: int, s0: int, s1: int) -> int:
    """Noise levels N of improved consistency training (Song & Dhariwal, 2023, section 3.4).

    FOUND: `N(k) = min(s0 2^floor(k / K'), s1) + 1` with
    `K' = floor(K / (log2(floor(s1 / s0)) + 1))`. DERIVED: k and K in images here.

    Args:
        done: Images seen, k.
        total: Images of the training, K.
        s0: Intervals at the start, at least 1.
        s1: Most intervals.
    """
    stage = max(1, math.floor(total / (math.log2(s1 // s0) + 1)))
    return int(min(s0 * 2 ** (done // stage), s1)) + 1


class ConsistencyGrid(TimeSampler):
    """Times of consistency models: the later one of two neighbours on a grid of N noise levels.

    FOUND (Song et al., 2023): Karras levels from t_min to t_max, N growing with training, the
    interval drawn uniformly. FOUND (Song & Dhariwal, 2023): N doubling, and intervals drawn by a
    log-normal law of the noise level. The view `clean` is noised at `t_(n+1)`; the terms
    `consistency-training` and `consistency-distillation` find its neighbour `t_n` here, and what
    `f` is, which the sampler `consistency` reads as well.
    """

    @settings
    class Settings(FunctionKeys):
        """Keys of `use = "consistency-grid"`.

        Raises:
            ValueError: If the grid gets coarser.
        """

        curriculum: Literal["root", "doubling", "constant"] = setting(
            "root", help="how the number of levels grows: as in CM, as in iCT, or not"
        )
        s0: int | None = setting(
            None, ge=2, le=2**20, applies=("curriculum", _GROWS),
            help="levels at the start (root, 2) or intervals (doubling, 10); those if left out",
        )  # fmt: skip
        s1: int | None = setting(
            None, ge=2, le=2**20, applies=("curriculum", _GROWS),
            help="levels, less one, at the end: 150 (root) or 1280 (doubling) if left out",
        )  # fmt: skip
        levels: int = setting(
            18, ge=2, le=2**20, applies=("curriculum", ("constant",)), help="number of levels N"
        )
        over: int | None = setting(
            None, ge=1, applies=("curriculum", _GROWS), unit="images",
            help="length of the curriculum; that of the run if left out",
        )  # fmt: skip
        grid: Literal["karras", "log-snr", "uniform"] = setting(
            "karras", help="law of the levels, in sigma / alpha, its logarithm, or t"
        )
        rho: float = setting(
            7.0, gt=0.0, applies=("grid", ("karras",)), help="exponent of the karras grid"
        )
        index: Literal["uniform", "log-normal"] = setting(
            "uniform", help="law of the interval: uniform (CM), or log-normal in its levels (iCT)"
        )
        mean: float = setting(
            -1.1, applies=("index", ("log-normal",)), help="mean of log(sigma / alpha)"
        )
        std: float = setting(
            2.0, gt=0.0, applies=("index", ("log-normal",)), help="standard deviation of it"
        )

        def __attrs_post_init__(self) -> None:
            """Check that the grid does not get coarser."""
            if self.first > self.last:
                message = f"s1: {self.last} must be at least s0 = {self.first}"
                raise ValueError(message)

        @property
        def first(self) -> int:
            """The value of s0."""
            return self.s0 or (10 if self.curriculum == "doubling" else 2)

        @property
        def last(self) -> int:
            """The value of s1."""
            return self.s1 or (1280 if self.curriculum == "doubling" else 150)

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        if build.schedule is None:
            refuse(build, "use", "a grid of noise levels needs a schedule", "add [schedule]")
            return
        self.schedule = build.schedule
        self.function = settings.of(build.schedule)
        self._grids: dict[tuple[int, torch.device], Tensor] = {}
        self._check_law()

    def _check_law(self) -> None:
        """Refuse an index law that has no probability on the finest grid.

        Raises:
            RecipeError: R10.
        """
        if self.settings.index == "uniform":
            return
        mass = self._mass(self.grid(2, torch.device("cpu")))
        if not float(mass[-1] - mass[0]) > 0:
            message = "the log-normal law gives no interval of the schedule's noise levels a chance"
            refuse(self.build, "mean", message, "choose mean and std inside log(sigma / alpha)")

    def levels(self, nimg: int) -> int:
        """Noise levels N in use at `nimg` images; intervals are one fewer."""
        keys = self.settings
        if keys.curriculum == "constant":
            return keys.levels
        total = keys.over or self.build.images
        done = min(nimg, total)
        if keys.curriculum == "doubling":
            return doubling_levels(done, total, keys.first, keys.last)
        return root_levels(done / total if total else 1.0, keys.first, keys.last)

    def grid(self, count: int, device: torch.device) -> Tensor:
        """Times `t_1 = t_min < ... < t_N = t_max` [N], float64, kept per device."""
        if (count, device) not in self._grids:
            law, rho = self.settings.grid, self.settings.rho
            falling = grids.sampling_times(self.schedule, count, law=law, rho=rho)[:-1]
            self._grids[count, device] = falling.flip(0).to(device)
        return self._grids[count, device]

    def draw(self, u: Tensor, nimg: int) -> Times:
        """Times `t_(n+1)` [B], float64, of intervals drawn by the index law; no weights.

        Args:
            u: Uniform numbers in [0, 1) [B], float64.
            nimg: Images seen before the step.
        """
        grid = self.grid(self.levels(nimg), u.device)
        if self.settings.index == "uniform":
            interval = (u * (len(grid) - 1)).floor().long()
        else:
            mass = self._mass(grid)
            interval = torch.searchsorted(mass[1:], mass[0] + u * (mass[-1] - mass[0]), right=True)
        return Times(grid[1:][interval.clamp(max=len(grid) - 2)])

    def before(self, t: Tensor, nimg: int) -> Tensor:
        """The next smaller time `t_n` [B] of times `t_(n+1)` [B] that were drawn.

        Args:
            t: Times on the grid, in any floating dtype; the nearest one counts.
            nimg: Images seen before the step.
        """
        grid = self.grid(self.levels(nimg), t.device)
        place = torch.bucketize(t.double(), (grid[1:] + grid[:-1]) / 2)
        return grid[(place - 1).clamp(min=0)].to(t.dtype)

    def _mass(self, grid: Tensor) -> Tensor:
        """Distribution function of the log-normal law at the levels of `grid` [N]."""
        level = noise_ratio(self.schedule, grid).log()
        return torch.special.ndtr((level - self.settings.mean) / self.settings.std)
