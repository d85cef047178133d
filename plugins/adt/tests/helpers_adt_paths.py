"""Samplers, schedules and small denoisers for the tests of rollouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advdiff_core import (
    Build,
    DataInfo,
    Domain,
    NoiseSchedule,
    Prediction,
    Sampler,
    SeedDraws,
    expand,
)
from advdiff_core.samplers import DDIM, DDPM, DPMpp2M, Euler, Heun
from advdiff_core.schedules import VPLinear

__all__ = ["LINEAR", "SHAPE", "build_of", "draws", "eps_of", "noise", "sampler", "sd_schedule"]

SHAPE = (3,)
#: Samplers with linear steps, by what tests call them; each with settings that matter.
LINEAR: dict[str, tuple[type[Sampler], dict[str, Any]]] = {
    "ddim": (DDIM, {}),
    "ddim-eta": (DDIM, {"eta": 0.7}),
    "ddpm": (DDPM, {}),
    "ddpm-learned": (DDPM, {"variance": "learned-range"}),
    "dpm++2m": (DPMpp2M, {}),
    "euler": (Euler, {}),
    "euler-churn": (Euler, {"churn": 3.0}),
    "heun": (Heun, {}),
}


def build_of(schedule: NoiseSchedule | None = None, domain: Domain | None = None) -> Build:
    """What a sampler is told."""
    build = Build(data=DataInfo(shape=SHAPE, count=64, domain=domain))
    known = schedule or VPLinear(VPLinear.Settings(), build)
    return Build(data=build.data, schedule=known, path="terms.adversarial.sampler")


def sd_schedule() -> NoiseSchedule:
    """The schedule of Stable Diffusion: scaled-linear, 1000 times."""
    keys = VPLinear.Settings(beta_start=0.00085, beta_end=0.012, root=True)
    return VPLinear(keys, Build())


def sampler(
    name: str, steps: int = 6, *, schedule: NoiseSchedule | None = None, **more: Any
) -> Sampler:
    """A linear sampler."""
    cls, keys = LINEAR[name]
    settings: Any = cls.Settings  # type: ignore[attr-defined]
    return cls(settings(steps=steps, **keys, **more), build_of(schedule))


def draws(size: int = 2) -> SeedDraws:
    """Random numbers of a sampler."""
    return SeedDraws(list(range(size)))


def noise(size: int = 2, seed: int = 3) -> Tensor:
    """A start [size, 3] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)


def eps_of(
    schedule: NoiseSchedule, value: Callable[[Tensor, Tensor], Tensor], kind: str = "eps"
) -> Callable[[Tensor, Tensor], Prediction]:
    """A denoiser that predicts `value(x_t, t)` [B, ...] of a kind, with a variance head."""

    def denoise(x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = expand(schedule.alpha(t), x_t), expand(schedule.sigma(t), x_t)
        found = value(x_t, t)
        return Prediction(kind, found, x_t, alpha, sigma, variance=torch.tanh(found))

    return denoise
