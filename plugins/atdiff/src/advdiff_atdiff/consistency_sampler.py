"""Sampling with consistency models, in one step or several."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_later

from advdiff_atdiff.consistency_function import ConsistencyFunction
from advdiff_atdiff.consistency_grid import ConsistencyGrid
from advdiff_atdiff.latent_grid import LatentGrid
from advdiff_core import Build, Denoise, ImageDraws, Prediction, Sampler, Samples, StepCallback
from advdiff_core.errors import ContractError
from advdiff_core.interfaces.requirements import refuse
from advdiff_core.math import grids
from advdiff_core.settings import setting, settings

__all__ = ["Consistency"]


class _Level(NamedTuple):
    """One time of the grid: the time, its alpha, and its sigma over alpha."""

    t: float
    alpha: float
    tau: float


class Consistency(Sampler):
    """One-step and multistep sampling with a consistency model.

    FOUND (Song et al., 2023, algorithm 1): `f` at the largest time; then, at each further time,
    noise of the level `sqrt(tau^2 - tau_min^2)` is added and `f` applied again. The samples are
    points at t_min, as those of the paper, divided by alpha there; a grid's last time, without
    noise, costs no evaluation. What `f` is comes from `consistency-grid` or `latent-grid`, if the
    recipe has one; from the latter the times, too (Luo et al., 2023, algorithm 3).
    """

    of_denoiser: ClassVar[bool] = False

    @settings
    class Settings:
        """Keys of `use = "consistency"`."""

        steps: int = setting(1, ge=1, le=2**20, unit="steps", help="evaluations of the network")
        times: tuple[float, ...] = setting(
            (), help="times at which noise is added again, falling; the grid's law if left out"
        )
        grid: Literal["karras", "log-snr", "uniform"] = setting(
            "karras", help="law of the times, in sigma / alpha, its logarithm, or t"
        )
        rho: float = setting(
            7.0, gt=0.0, applies=("grid", ("karras",)), help="exponent of the karras grid"
        )
        function: Literal["boundary", "lcm"] | None = setting(
            None, help="form of f; left out, that of the recipe's grid, or else boundary"
        )
        sigma_data: float = setting(
            0.5, gt=0.0, applies=("function", ("boundary", "lcm")),
            help="standard deviation of the data in the coefficients of f",
        )  # fmt: skip
        timestep_scaling: float = setting(
            10.0, gt=0.0, applies=("function", ("lcm",)), help="factor of the timestep"
        )

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        if build.schedule is None:
            refuse(build, "use", "a consistency model needs a schedule", "add [schedule]")
            return
        self.schedule = build.schedule
        self.function = self._function()
        self._check_times()

    def _function(self) -> ConsistencyFunction:
        keys, times = self.settings, self.build.times
        if keys.function is None and isinstance(times, ConsistencyGrid | LatentGrid):
            return times.function
        return ConsistencyFunction(
            self.schedule, keys.function or "boundary",
            sigma_data=keys.sigma_data, scaling=keys.timestep_scaling,
        )  # fmt: skip

    @property
    def _latent(self) -> LatentGrid | None:
        """The grid of a latent consistency model, where times and function come from it."""
        times = self.build.times
        return times if self.settings.function is None and isinstance(times, LatentGrid) else None

    def _check_times(self) -> None:
        times, steps = self.settings.times, self.settings.steps
        if not times and self._latent is not None and steps > self._latent.count:
            message = f"{steps} steps on the {self._latent.count} times of latent-grid"
            refuse(self.build, "steps", message, f"write at most {self._latent.count}")
        low, high = self.schedule.t_min, self.schedule.t_max
        if times and steps not in (1, len(times) + 1):
            message = f"{steps} steps, and times for {len(times) + 1}"
            refuse(self.build, "steps", message, "write one of the two")
        falling = all(a > b for a, b in zip((high, *times), (*times, low), strict=True))
        if times and not falling:
            message = f"times {list(times)} do not fall from {high:g} to {low:g}, ends left out"
            refuse(self.build, "times", message, "write falling times between these two")

    def grid(self) -> Tensor:
        """Times [n + 1], float64: t_max, those at which noise is added again, and t_zero."""
        keys, zero = self.settings, self.schedule.t_zero
        if keys.times:
            return torch.tensor([self.schedule.t_max, *keys.times, zero], dtype=torch.float64)
        if self._latent is not None:
            return self._latent.sampling_times(keys.steps)
        # One level more, as nothing is left to do at t_min itself.
        levels = grids.sampling_times(self.schedule, keys.steps + 1, law=keys.grid, rho=keys.rho)
        return torch.cat([levels[:-2], levels[-1:]])

    def sample(  # noqa: PLR0913 - the switches a caller may combine.
        self,
        denoise: Denoise,
        x: Tensor,
        draws: ImageDraws,
        *,
        grid: Tensor | None = None,
        grad_steps: tuple[int, ...] | None = None,
        checkpoint: bool = False,
        callback: StepCallback | None = None,
    ) -> Samples:
        """Run it from `x` [B, ...]; see `Sampler.sample`.

        Raises:
            ContractError: If the grid does not fall strictly or `grad_steps` names a missing step.
        """
        levels = self._levels(self.grid() if grid is None else grid)
        tracked = self._tracked(grad_steps, len(levels))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for index, level in enumerate(levels):
            if index > 0:
                x = self._noised(x, level, draws)
            if index not in tracked:
                with torch.no_grad():
                    x, prediction = self._step(denoise, x, level.t)
            elif checkpoint:
                x, prediction = recompute_later(
                    self._step, denoise, x, level.t, use_reentrant=False
                )
            else:
                x, prediction = self._step(denoise, x, level.t)
            if callback is not None:
                moved = callback(index, x, prediction)
                x = x if moved is None else moved
        return Samples(x, len(levels))

    def _step(self, denoise: Denoise, x: Tensor, t: float) -> tuple[Tensor, Prediction]:
        """The start of the trajectory through `x` [B, ...], in units of the data."""
        times = torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device)
        prediction = denoise(x, times)
        return self.function(prediction, times) / self.function.end[0], prediction

    def _noised(self, x: Tensor, level: _Level, draws: ImageDraws) -> Tensor:
        """A start `x` [B, ...] at a noisier level again."""
        noise = draws.normal(tuple(x.shape)).to(x)
        added = math.sqrt(max(level.tau**2 - self.function.end[1] ** 2, 0.0))
        return level.alpha * (x + added * noise)

    def _levels(self, grid: Tensor) -> list[_Level]:
        """Where the network is evaluated: each time but the last."""
        times = grid.detach().double().cpu()
        if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
            message = f"a grid of shape {list(times.shape)} that does not fall from time to time"
            fix = "give times [n + 1], n >= 1, noisiest first"
            raise ContractError(message, where=self.build.path, fix=fix)
        alpha, sigma = self.schedule.alpha(times[:-1]), self.schedule.sigma(times[:-1])
        columns = (times[:-1].tolist(), alpha.tolist(), (sigma / alpha).tolist())
        return [_Level(*row) for row in zip(*columns, strict=True)]

    def _tracked(self, grad_steps: tuple[int, ...] | None, count: int) -> frozenset[int]:
        tracked = frozenset(grad_steps or ())
        missing = sorted(tracked - frozenset(range(count)))
        if missing:
            message = f"grad_steps holds {missing[0]}, the grid has steps 0 to {count - 1}"
            raise ContractError(message, where=self.build.path, fix="name steps of the grid")
        return tracked
