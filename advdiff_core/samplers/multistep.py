"""Multistep solvers, which reuse the estimate of the step before."""

from __future__ import annotations

import math

from torch import Tensor

from advdiff_core.math import grids
from advdiff_core.samplers._grid_sampler import GridSampler, GridSettings
from advdiff_core.samplers._path import Estimate, Evaluator, Level, State
from advdiff_core.settings import setting, settings

__all__ = ["DPMpp2M"]


class DPMpp2M(GridSampler):
    """DPM-Solver++(2M), second order with one evaluation a step (Lu et al., 2022, algorithm 2).

    The first step, and one that ends without noise (at infinite log-SNR), are of first order.
    """

    @settings
    class Settings(GridSettings):
        """Grid and order of the last step."""

        steps: int = setting(20, help="Number of steps.", ge=1, unit="steps")
        grid: str | None = setting("karras", help="Law of the sampling times.", choices=grids.LAWS)
        lower_order_final: bool = setting(
            default=True, help="Take the last step of any grid in first order, for stability."
        )

    settings: Settings

    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        del noise
        level, after = levels[index], levels[index + 1]
        estimate = evaluate(state.x, level)
        x0 = estimate.x0
        if state.x0 is not None and not self._first_order(levels, index):
            x0 = x0 + (x0 - state.x0) * _lookback(levels, index)
        # exp(-h) and 1 - exp(-h) for the step h in log(alpha / sigma).
        left = math.exp((level.log_snr - after.log_snr) / 2)
        gone = -math.expm1((level.log_snr - after.log_snr) / 2)
        # sigma_next / sigma = left * alpha_next / alpha.
        x = after.alpha * (left / level.alpha * state.x + gone * x0)
        return State(x, estimate.x0), estimate

    def _first_order(self, levels: list[Level], index: int) -> bool:
        last = index == len(levels) - 2
        return levels[index + 1].sigma == 0 or (last and self.settings.lower_order_final)


def _lookback(levels: list[Level], index: int) -> float:
    """`1 / (2 r)`, with r the ratio of the last step in log-SNR to this one."""
    before, level, after = levels[index - 1 : index + 2]
    return (after.log_snr - level.log_snr) / (level.log_snr - before.log_snr) / 2
