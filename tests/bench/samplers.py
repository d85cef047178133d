"""Sampling: DDIM in 50 steps and DPM-Solver++ 2M in 20, against diffusers and k-diffusion.

One U-Net for 32x32 colour images with random weights, read as eps on the linear VP schedule; the
same start, times and steps on all sides, which end in the same images. Clipping is off. k-diffusion
(`pip install --no-deps -r tests/bench/peers.txt`) is left out, and the table says so, where it is
not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from advdiff_core.backbones.unet import UNet
from advdiff_core.draws import SeedDraws
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.interfaces.component import Build
from advdiff_core.samplers import DDIM, DPMpp2M
from advdiff_core.schedules import VPLinear
from advdiff_core.types import DataInfo, Domain, Prediction, expand
from tests.bench.duel import duel, largest_gap, rounds_of
from tests.bench.peers import k_diffusion

BATCH, ROUNDS, WARM_UP = 8, 15, 2
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
#: Single precision over so many steps.
ROUNDING = 2e-3
Side = Callable[[], Tensor]


class Bench:
    """Network, schedule and start of all sides."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        info = DataInfo(shape=(3, 32, 32), count=1, domain=Domain(-1.0, 1.0))
        told = UNet.Settings(channels=32, channel_mult=(1, 2, 2), blocks=1, attention=(8,))
        self.net = UNet(told, Build(data=info)).eval()
        for parameter in self.net.parameters():
            # The last layer starts at zero: as it is, nothing would be there to compare.
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        self.schedule = VPLinear(VPLinear.Settings(), None)
        self.start = torch.randn(BATCH, 3, 32, 32)

    def eps(self, x: Tensor, index: Tensor) -> Tensor:
        """Noise [B, ...] that the network predicts at timesteps [B] counted from 0."""
        output = self.net(x, index + 1.0).output
        assert output is not None
        return output

    def denoise(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The network as our samplers see it."""
        index = (t * 1000).round() - 1
        alpha, sigma = expand(self.schedule.alpha(t), x_t), expand(self.schedule.sigma(t), x_t)
        return Prediction("eps", self.eps(x_t, index.float()), x_t, alpha, sigma)

    def ours(self, cls: type[DDIM | DPMpp2M], timesteps: Tensor) -> Side:
        """One of our samplers on the times of diffusers' timesteps."""
        sampler = cls(cls.Settings(), Build(schedule=self.schedule))
        grid = torch.tensor([*((int(i) + 1) / 1000 for i in timesteps), 0.0], dtype=torch.float64)
        draws = SeedDraws(range(BATCH))
        return lambda: sampler.sample(self.denoise, self.start, draws, grid=grid).x0

    def theirs(self, scheduler: DDIMScheduler | DPMSolverMultistepScheduler, steps: int) -> Side:
        """The loop of diffusers."""

        @torch.no_grad()
        def run() -> Tensor:
            scheduler.set_timesteps(steps)
            x = self.start
            for t in scheduler.timesteps:
                x = scheduler.step(self.eps(x, t.float().expand(BATCH)), t, x).prev_sample
            return x

        return run

    def k_dpmpp_2m(self, sampling: Any, timesteps: Tensor) -> Side:
        """The loop of k-diffusion, in its own space (x / alpha), on the same noise levels."""
        times = (timesteps.double() + 1) / 1000
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        levels = torch.cat([sigma / alpha, torch.zeros(1, dtype=torch.float64)]).float()
        # By index: timesteps are whole numbers, and levels are read off as they come.
        numbers = dict(zip(levels.tolist(), timesteps.tolist(), strict=False))

        def model(z: Tensor, level: Tensor, **_: object) -> Tensor:
            index = torch.full((BATCH,), float(numbers[level[0].item()]))
            scale = (1 + level[0] ** 2).rsqrt()
            return z - level[0] * self.eps(z * scale, index)

        def run() -> Tensor:
            with torch.no_grad():
                z = self.start / alpha[0].float()
                return sampling.sample_dpmpp_2m(model, z, levels, disable=True)

        return run


def ddim(bench: Bench) -> list[dict[str, object]]:
    """DDIM in 50 steps."""
    reference = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    reference.set_timesteps(50)
    sides = {
        "ours": bench.ours(DDIM, reference.timesteps), "diffusers": bench.theirs(reference, 50),
    }  # fmt: skip
    return _entries("DDIM, 50 steps", sides)


def dpmpp_2m(bench: Bench) -> list[dict[str, object]]:
    """DPM-Solver++ 2M in 20 steps, the last one of first order."""
    reference = DPMSolverMultistepScheduler(
        **BETAS, solver_order=2, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    reference.set_timesteps(20)
    sides = {
        "ours": bench.ours(DPMpp2M, reference.timesteps), "diffusers": bench.theirs(reference, 20),
    }  # fmt: skip
    if (peer := k_diffusion()) is not None:
        sides["k-diffusion"] = bench.k_dpmpp_2m(peer.sampling, reference.timesteps)
    return _entries("DPM-Solver++ 2M, 20 steps", sides)


def _entries(name: str, sides: dict[str, Side]) -> list[dict[str, object]]:
    images = sides["ours"]()
    assert images.std() > 0.1, "the network says nothing"
    agreements = {
        side: largest_gap(images, run(), ROUNDING) for side, run in sides.items() if side != "ours"
    }
    return duel(name, rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP), agreements)


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    bench = Bench()
    return ddim(bench) + dpmpp_2m(bench)
