"""What the core's samplers share: grid, loop over its steps, gradients, counting."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute_later

from advdiff_core.errors import ContractError, Fault, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.noise_schedule import NoiseSchedule
from advdiff_core.interfaces.sampler import Denoise, ImageDraws, Sampler, Samples, StepCallback
from advdiff_core.math import grids
from advdiff_core.samplers._path import Estimate, Evaluator, Level, State, levels_of
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["GridSampler", "GridSettings"]


@settings
class GridSettings:
    """Keys that every sampler has; defaults of `steps` and `grid` may be the sampler's own."""

    steps: int = setting(50, help="Number of steps from noise to sample.", ge=1, unit="steps")
    grid: str | None = setting(
        None, help="Law of the sampling times; the schedule's own by default.", choices=grids.LAWS
    )
    rho: float = setting(7.0, help="Exponent of the karras grid.", gt=0)
    shift: float = setting(
        1.0,
        help="Factor of sigma / alpha by which the grid is moved towards noise, on the schedule "
        "flow: t becomes s t / (1 + (s - 1) t). 3 is that of Stable Diffusion 3.",
        ge=1,
    )
    clip_x0: bool = setting(
        default=False, help="Clip every estimate of the clean sample to the data's domain."
    )


class GridSampler(Sampler):
    """A sampler that is one step function over consecutive levels of a grid.

    A subclass gives `_step`, and `_noisy` if its steps draw numbers.
    """

    #: Leave eps as predicted where x0 was clipped.
    _keep_eps = False

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        if build.schedule is None:
            message = f"sampler {type(self).__name__} needs a noise schedule, the recipe has none"
            self._refuse("use", message, "add a [schedule] table")
        self.schedule = build.schedule
        self._clip = self._domain() if settings.clip_x0 else None
        if settings.shift != 1:
            self._check_shift(settings.shift, build.schedule)

    def _check_shift(self, shift: float, schedule: NoiseSchedule) -> None:
        if not grids.is_straight(schedule):
            message = f"found {shift:g} for a schedule that is not alpha = 1 - t and sigma = t"
            self._refuse("shift", message, 'set it to 1, or schedule.use = "flow"')
        low = float(grids.shifted(torch.tensor(schedule.t_min, dtype=torch.float64), shift))
        if low >= schedule.t_max:
            message = (
                f"found {shift:g}, which moves t_min = {schedule.t_min:g} of the schedule to "
                f"{low:g}, beyond t_max = {schedule.t_max:g}"
            )
            self._refuse("shift", message, "lower it, or schedule.t_min")

    def _domain(self) -> Domain:
        domain = self.build.data.domain if self.build.data else None
        if domain is None:
            message = "found true for data that has no domain to clip to"
            self._refuse("clip_x0", message, "set it to false, or set data.domain")
        return domain

    def _refuse(self, key: str, message: str, fix: str) -> NoReturn:
        """Refuse a recipe whose parts do not fit.

        Raises:
            RecipeError: Always, R10.
        """
        where = f"{self.build.path}.{key}" if self.build.path else key
        raise RecipeError([Fault(code="R10", key=where, message=message, fix=fix)])

    @property
    def linear(self) -> bool:
        """True unless estimates are clipped; see `Sampler.linear`."""
        return self._clip is None

    def grid(self) -> Tensor:
        """Times [steps + 1], float64, from t_max down to the schedule's noiseless end."""
        made = self.settings
        law = made.grid or self.schedule.default_grid
        return grids.sampling_times(
            self.schedule, made.steps, law=law, rho=made.rho, shift=made.shift
        )

    @final
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
        """Run the sampler; see `Sampler.sample`.

        Raises:
            ContractError: If the grid does not fall strictly or `grad_steps` names a missing step.
        """
        times = self.grid() if grid is None else grid
        levels = levels_of(self.schedule, times, where=self.build.path)
        tracked = self._tracked(grad_steps, len(levels) - 1)
        evaluate = Evaluator(denoise, clip=self._clip, keep_eps=self._keep_eps)
        state = State(x.to(torch.promote_types(x.dtype, torch.float32)))
        for index in range(len(levels) - 1):
            # Drawn out here: a step that is recomputed in the backward must see the same numbers.
            noise = _noise(draws, state.x) if self._noisy(levels, index) else None
            if index not in tracked:
                with torch.no_grad():
                    state, estimate = self._step(evaluate, state, levels, index, noise)
            elif checkpoint:
                state, estimate = recompute_later(
                    self._step, evaluate, state, levels, index, noise, use_reentrant=False
                )
            else:
                state, estimate = self._step(evaluate, state, levels, index, noise)
            if callback is not None:
                moved = callback(index, state.x, estimate.prediction)
                state = state if moved is None else state._replace(x=moved)
        return Samples(state.x, evaluate.calls)

    def _tracked(self, grad_steps: tuple[int, ...] | None, count: int) -> frozenset[int]:
        tracked = frozenset(grad_steps or ())
        missing = sorted(tracked - frozenset(range(count)))
        if missing:
            message = f"grad_steps holds {missing[0]}, the grid has steps 0 to {count - 1}"
            raise ContractError(message, where=self.build.path, fix="name steps of the grid")
        return tracked

    def _noisy(self, levels: list[Level], index: int) -> bool:
        """Whether step `index` draws numbers."""
        del levels, index
        return False

    @abstractmethod
    def _step(
        self,
        evaluate: Evaluator,
        state: State,
        levels: list[Level],
        index: int,
        noise: Tensor | None,
    ) -> tuple[State, Estimate]:
        """One step from `levels[index]` to `levels[index + 1]`.

        Args:
            evaluate: The denoiser.
            state: State at the first level.
            levels: All levels of the grid.
            index: The step.
            noise: Standard normal numbers [B, ...] if `_noisy` says so.
        """


def _noise(draws: ImageDraws, like: Tensor) -> Tensor:
    return draws.normal(tuple(like.shape)).to(like)
