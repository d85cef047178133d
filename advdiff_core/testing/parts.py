"""Small, healthy components that stand in for what a component under test needs around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advdiff_core.draws import Draws
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.attack import Attack, Victim
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.discriminator import Discriminator
from advdiff_core.interfaces.perturbation import Perturbation, Probe, SearchCost
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms
from advdiff_core.settings import setting, settings
from advdiff_core.types import Budget, Domain, Noised, TapInfo, expand

__all__ = ["BenchAttack", "BenchCritic", "BenchNet", "BenchShift", "BenchTarget"]

#: Features of the stand-in networks.
WIDTH = 4


def _dims(build: Build) -> int:
    assert build.data is not None, "a network is built after the data"
    return math.prod(build.data.shape)


class BenchNet(Backbone):
    """Two smooth layers on flattened input; denoiser, or classifier with `outputs`."""

    @settings
    class Settings:
        """Keys of the stand-in."""

        outputs: int = setting(0, ge=0, help="logits; 0 for a denoiser")
        names: tuple[str, ...] = setting(("hidden",), help="names of its tap")
        flat: bool = setting(False, help="ignore the input: every gradient towards it is zero")

    settings: Any

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        size = _dims(build)
        self.first = nn.Linear(size + 1, WIDTH)
        self.last = nn.Linear(WIDTH, settings.outputs or size)

    @property
    def taps(self) -> Mapping[str, TapInfo]:
        """The hidden layer, by every name that is asked for."""
        return {name: TapInfo(width=WIDTH) for name in self.settings.names}

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        taps: tuple[str, ...] = (),
        stop_at: str | None = None,
    ) -> BackboneOutput:
        """Run it on `x` [B, ...]; see `Backbone.forward`."""
        del labels
        level = x.new_zeros(x.shape[0]) if c_noise is None else (c_noise / 500).to(x.dtype)
        seen = x.flatten(1) * 0 if self.settings.flat else x.flatten(1)
        h = torch.tanh(self.first(torch.cat([seen, level[:, None]], dim=1)))
        features = dict.fromkeys(taps, h)
        if stop_at is not None:
            return BackboneOutput(None, features)
        out = self.last(h)
        return BackboneOutput(out if self.settings.outputs else out.reshape(x.shape), features)


class BenchCritic(Discriminator):
    """One hidden layer and one logit."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.net = nn.Sequential(nn.Linear(_dims(build), WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))

    def forward(
        self, x: Tensor, *, reference: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Logits [B] for `x` [B, ...]; see `Discriminator.forward`."""
        del labels
        seen = x if reference is None else x - reference
        out: Tensor = self.net(seen.flatten(1)).squeeze(1)
        return out


class BenchTarget(AlignmentTarget):
    """A fixed random projection of slightly noised images."""

    def __init__(self, settings: Any, build: Build) -> None:
        super().__init__(settings, build)
        self.projection = nn.Linear(_dims(build), WIDTH)

    @property
    def width(self) -> int:
        """Feature width."""
        return WIDTH

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D] of `x0` [B, ...]; see `AlignmentTarget.forward`."""
        del labels
        noised = x0 + 0.1 * rng.normal(x0.shape).to(x0.dtype)
        out: Tensor = self.projection(noised.flatten(1))
        return out


class BenchShift(Perturbation):
    """A random direction, cut to a small ball."""

    def budget(self, noised: Noised, rng: Draws) -> Budget:
        """An L2 ball."""
        del noised, rng
        return Budget("l2", 0.25)

    def search(self, noised: Noised, budget: Budget, probe: Probe, rng: Draws) -> Tensor:
        """A long random vector [B, ...]."""
        del budget, probe
        return 100 * rng.normal(noised.x_t.shape).to(noised.x_t.dtype)


class BenchAttack(Attack):
    """One step along the gradient."""

    def cost(self) -> SearchCost:
        """One forward and backward."""
        return SearchCost(1, 1)

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """Climb the victim's loss from `x` [B, ...]."""
        del domain, rng
        found = x.detach().requires_grad_()
        gradient = input_gradient(victim.loss(victim.outputs(found)), found)
        radius = expand(torch.as_tensor(budget.radius), x).to(x.dtype)
        return x + radius * norms.steepest_ascent(gradient, budget.norm)
