"""Components that break: what the core must notice, name and survive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advdiff_core import (
    Budget,
    Build,
    Draws,
    EpsHat,
    LossTerm,
    Noised,
    Perturbation,
    Probe,
    Query,
    Step,
    X0Hat,
)
from advdiff_core.hooks.specs import hookimpl
from advdiff_core.settings import setting, settings

__all__ = [
    "EditsInPlace",
    "InfiniteGradient",
    "NotANumber",
    "RaisingHook",
    "RaisingSearch",
    "ScalarLoss",
    "Undeclared",
]


@settings
class _When:
    """When it breaks."""

    at: int = setting(0, ge=0, unit="images", help="images seen when it breaks")


class _Breaking(LossTerm):
    """Base of terms that are zero until they break."""

    settings: Any

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.eps_hat = EpsHat("student")
        self.needs = (self.eps_hat,)

    def breaks(self, step: Step) -> bool:
        """Whether this is the moment."""
        return step.nimg >= self.settings.at


class NotANumber(_Breaking):
    """A loss of zero that turns into NaN once `at` images were seen."""

    @settings
    class Settings(_When):
        """Keys of `use = "toy-nan"`."""

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        zero = (step.get(self.eps_hat) * 0).flatten(1).sum(1)
        return zero * float("nan") if self.breaks(step) else zero


class InfiniteGradient(_Breaking):
    """A loss that stays finite, whose gradient is infinite once `at` images were seen."""

    @settings
    class Settings(_When):
        """Keys of `use = "toy-inf-gradient"`."""

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        total = step.get(self.eps_hat).flatten(1).sum(1)
        zero = total - total.detach()
        # The slope of a square root at 0 is infinite; its value is 0.
        return zero.sqrt() if self.breaks(step) else zero


class ScalarLoss(_Breaking):
    """Returns one number for the whole batch."""

    @settings
    class Settings(_When):
        """Keys of `use = "toy-scalar"`."""

    def forward(self, step: Step) -> Tensor:
        """A scalar."""
        return step.get(self.eps_hat).square().mean()


class EditsInPlace(_Breaking):
    """Writes to a tensor that other terms share."""

    @settings
    class Settings(_When):
        """Keys of `use = "toy-in-place"`."""

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        shared = step.get(self.eps_hat)
        loss = shared.square().flatten(1).mean(1)
        with torch.no_grad():
            shared.mul_(2.0)
        return loss


class Undeclared(_Breaking):
    """Asks for a query that it did not declare."""

    @settings
    class Settings(_When):
        """Keys of `use = "toy-undeclared"`."""

    def forward(self, step: Step) -> Tensor:
        """The loss of each sample [B]."""
        return step.get(X0Hat("student")).square().flatten(1).mean(1)


class RaisingSearch(Perturbation):
    """Fails in the middle of its search."""

    def needs(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at the unmoved input."""
        return (EpsHat("student", base),)

    def probes(self, base: str) -> tuple[Query[Any], ...]:
        """The prediction at moved inputs."""
        return (EpsHat("student", base),)

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """A small box."""
        del noised, rng
        return Budget("linf", 0.1)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """Ask once, then fail."""
        del budget, rng
        delta = torch.zeros_like(noised.x_t).requires_grad_()
        probe.at(delta).get(EpsHat("student", probe.base))
        message = "the search gave up"
        raise RuntimeError(message)


class RaisingHook:
    """Fails on the events that `[hooks.toy-raising-hook] events = [...]` names, and only then."""

    def __init__(self) -> None:
        self.events: tuple[str, ...] = ()

    @hookimpl
    def configured(self, options: Mapping[str, Any]) -> None:
        """Be told when to fail."""
        self.events = tuple(options.get("events", ()))
        self._fail("configured")

    @hookimpl
    def run_started(self) -> None:
        """Fail if told to."""
        self._fail("run_started")

    @hookimpl
    def metrics_logged(self) -> None:
        """Fail if told to."""
        self._fail("metrics_logged")

    @hookimpl
    def checkpoint_saved(self) -> None:
        """Fail if told to."""
        self._fail("checkpoint_saved")

    def _fail(self, event: str) -> None:
        if event in self.events:
            message = f"toy hook: {event}"
            raise RuntimeError(message)
