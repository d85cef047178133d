"""Solvers of the probability-flow ODE in noise-level coordinates, with churn.

In `z = x / alpha` and `s = sigma / alpha` the ODE of every schedule is `dz / ds = eps_hat` (Karras
et al., 2022, eq. 4), so one solver serves all of them. `s` is the unit of the churn settings.
"""

from __future__ import annotations

import math

from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.math import grids
from advdiff_core.samplers._grid_sampler import GridSampler, GridSettings
from advdiff_core.samplers._path import (
    Estimate,
    Evaluator,
    Level,
    State,
    level_at_log_snr,
    linear_coefficients,
)
from advdiff_core.settings import setting, settings

__all__ = ["Euler", "Heun"]


@settings
class ChurnSettings(GridSettings):
    """Noise put back before a step (Karras et al., 2022, algorithm 2)."""

    steps: int = setting(18, help="Number of steps.", ge=1, unit="steps")
    grid: str | None = setting("karras", help="Law of the sampling times.", choices=grids.LAWS)
    churn: float = setting(0.0, help="S_churn: overall amount of noise put back.", ge=0)
    churn_min: float = setting(
        0.0, help="S_min: smallest noise level that is churned.", ge=0, unit="sigma / alpha"
    )
    churn_max: float | None = setting(
        None,
        help="S_max: largest noise level that is churned; no limit by default.",
        gt=0,
        unit="sigma / alpha",
    )
    churn_noise: float = setting(1.0, help="S_noise: inflation of the noise put back.", gt=0)


class _ODESolver(GridSampler):
    """Churn and the Euler step, which the solvers share."""

    settings: ChurnSettings

    def _gamma(self, level: Level, count: int) -> float:
        made = self.settings
        above = made.churn_max is not None and level.ratio > made.churn_max
        if made.churn == 0 or above or level.ratio < made.churn_min:
            return 0.0
        return min(made.churn / count, math.sqrt(2) - 1)

    def _churned(self, levels: list[Level], index: int) -> Level:
        """The noisier level at which step `index` evaluates the network.

        The level itself without churn; never noisier than the schedule's end.
        """
        level = levels[index]
        gamma = self._gamma(level, len(levels) - 1)
        if gamma == 0:
            return level
        return max(level, level_at_log_snr(self.schedule, level.log_snr - 2 * math.log1p(gamma)))

    def _noisy(self, levels: list[Level], index: int) -> bool:
        return self._churned(levels, index).t > levels[index].t

    def _euler(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[Tensor, Estimate, Level]:
        """Churn, evaluate and step; also returns the estimate and the level it was made at."""
        level, after = levels[index], levels[index + 1]
        x = state.x
        if noise is not None:
            noisier = self._churned(levels, index)
            added = math.sqrt(noisier.ratio**2 - level.ratio**2) * self.settings.churn_noise
            x, level = noisier.alpha * (x / level.alpha + added * noise), noisier
        estimate = evaluate(x, level)
        # The Euler step of z in s, written without the division by a vanishing alpha.
        return after.alpha * estimate.x0 + after.sigma * estimate.eps, estimate, level


class Euler(_ODESolver):
    """Euler steps of the probability-flow ODE in `sigma / alpha`, with churn.

    Without churn a step equals one of DDIM with eta = 0.
    """

    @settings
    class Settings(ChurnSettings):
        """Grid and churn."""

        steps: int = setting(50, help="Number of steps.", ge=1, unit="steps")

    settings: Settings

    def linear_step(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(a, b)` of `x_next = a * x + b * eps_hat`, of the shape of `t`.

        Raises:
            ContractError: With churn or clip_x0.
        """
        if self.settings.churn > 0 or self.settings.clip_x0:
            message = (
                "the step of sampler Euler is a * x + b * eps_hat without churn and clipping only"
            )
            raise ContractError(
                message, where=self.build.path, fix="set churn = 0 and clip_x0 = false"
            )
        return linear_coefficients(self.schedule, t, t_next)

    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        x, estimate, _ = self._euler(evaluate, state, levels, index, noise)
        return State(x), estimate


class Heun(_ODESolver):
    """Heun steps of the probability-flow ODE, with churn (Karras et al., 2022, algorithm 2).

    A step that ends without noise is an Euler step, so that n of them cost 2n - 1 evaluations.
    """

    @settings
    class Settings(ChurnSettings):
        """Grid and churn."""

    settings: Settings

    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        x, estimate, level = self._euler(evaluate, state, levels, index, noise)
        after = levels[index + 1]
        if after.sigma == 0:
            return State(x), estimate
        slope = (evaluate(x, after).eps - estimate.eps) / 2
        return State(x + (after.sigma - after.alpha * level.ratio) * slope), estimate
