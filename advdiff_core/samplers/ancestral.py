"""Samplers of the discrete reverse chain: DDPM and DDIM."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from advdiff_core.errors import ContractError
from advdiff_core.interfaces.component import Build
from advdiff_core.samplers._grid_sampler import GridSampler, GridSettings
from advdiff_core.samplers._path import Estimate, Evaluator, Level, State, linear_coefficients
from advdiff_core.settings import setting, settings

__all__ = ["DDIM", "DDPM"]

NO_HEAD = "the network has no variance head"
HEAD = "set learn_sigma = true of the network, and train it; or choose a fixed variance"


class DDPM(GridSampler):
    """Ancestral sampling with a fixed or learned variance (Ho et al., 2020), on any grid.

    The mean is that of the posterior q(x_next | x, x0_hat) on any pair of times and for any scales.
    The last step, to no noise, adds none. A learned variance is what the network's variance head
    says it is between the two fixed ones, in the logarithm: Nichol and Dhariwal (2021, eq. 15),
    with the variances of the grid's own steps.
    """

    @settings
    class Settings(GridSettings):
        """Grid and variance."""

        steps: int = setting(1000, help="Number of steps.", ge=1, unit="steps")
        variance: str = setting(
            "fixed-large",
            help="Noise added: the posterior's (fixed-small), the forward step's (fixed-large), or "
            "what the network says between them (learned-range).",
            choices=("fixed-small", "fixed-large", "learned-range"),
        )

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        denoisers = [m for m in build.models.values() if m.parametrization != "none"]
        if self._learned and denoisers and not any(m.learns_sigma for m in denoisers):
            self._refuse("variance", f"found 'learned-range'; {NO_HEAD}", HEAD)

    @property
    def _learned(self) -> bool:
        return str(self.settings.variance) == "learned-range"

    def _noisy(self, levels: list[Level], index: int) -> bool:
        return levels[index + 1].sigma > 0

    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        level, after = levels[index], levels[index + 1]
        estimate = evaluate(state.x, level)
        forgotten = level.forgotten(after)
        x = after.alpha * estimate.x0 + after.sigma * math.sqrt(1 - forgotten) * estimate.eps
        if noise is not None:
            x = x + self._std(level, after, estimate) * math.sqrt(forgotten) * noise
        return State(x), estimate

    def _std(self, level: Level, after: Level, estimate: Estimate) -> float | Tensor:
        """Standard deviation of the noise over the root of the share that is forgotten."""
        if not self._learned:
            return level.sigma if self.settings.variance == "fixed-large" else after.sigma
        head = estimate.prediction.variance
        if head is None:
            raise ContractError(
                f"variance = 'learned-range': {NO_HEAD}", where=self.build.path, fix=HEAD
            )
        # The head says -1 for the smaller variance and 1 for the larger one.
        share = (head.to(estimate.x0.dtype) + 1) / 2
        return after.sigma * (share * math.log(level.sigma / after.sigma)).exp()


class DDIM(GridSampler):
    """Denoising diffusion implicit models (Song et al., 2021, eq. 12 and 16), on any grid.

    With eta = 0 a step is deterministic and linear in the state and the predicted noise; eta = 1 is
    ancestral sampling with the posterior's variance.
    """

    @settings
    class Settings(GridSettings):
        """Grid and share of noise."""

        eta: float = setting(0.0, help="Share of the ancestral noise that is added.", ge=0, le=1)
        keep_eps: bool = setting(
            default=False,
            help="Where clip_x0 clips, keep the predicted noise, not the one that explains x.",
        )

    settings: Settings

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self._keep_eps = settings.keep_eps

    def linear_step(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients `(a, b)` of `x_next = a * x + b * eps_hat`, of the shape of `t`.

        Raises:
            ContractError: With eta above 0 or clip_x0.
        """
        if self.settings.eta > 0 or self.settings.clip_x0:
            message = (
                "the step of sampler DDIM is a * x + b * eps_hat without noise and clipping alone"
            )
            raise ContractError(
                message, where=self.build.path, fix="set eta = 0 and clip_x0 = false"
            )
        return linear_coefficients(self.schedule, t, t_next)

    def _std(self, level: Level, after: Level) -> float:
        """Standard deviation of the noise that a step adds (eq. 16)."""
        return self.settings.eta * after.sigma * math.sqrt(level.forgotten(after))

    def _noisy(self, levels: list[Level], index: int) -> bool:
        return self._std(levels[index], levels[index + 1]) > 0

    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        level, after = levels[index], levels[index + 1]
        estimate = evaluate(state.x, level)
        std = self._std(level, after)
        x = after.alpha * estimate.x0 + math.sqrt(after.sigma**2 - std**2) * estimate.eps
        if noise is not None:
            x = x + std * noise
        return State(x), estimate
