"""Forward and backward of the U-Net in float32 and bfloat16, in both memory formats, side by side.

Settles `auto` of `run.precision` and `run.channels_last` (advdiff_core/engine/compute.py).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from advdiff_core.backbones.unet import UNet
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

CASES = ((8, 1, 128, 32), (16, 1, 64, 32), (32, 3, 16, 64))
ROUNDS = 9


def run() -> list[dict[str, object]]:
    """One entry per size and variant, against float32 in the default format."""
    torch.set_num_threads(2)
    return [entry for case in CASES for entry in compare(*case)]


def compare(size: int, channels: int, batch: int, width: int) -> list[dict[str, object]]:
    """The four variants at one size, in alternation."""
    variants = {
        f"{precision}{', channels_last' if last else ''}": step(
            size, channels, batch, width, bf16=precision == "bf16", last=last
        )
        for precision in ("fp32", "bf16")
        for last in (False, True)
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(ROUNDS + 2):
        for name, variant in variants.items():
            began = time.perf_counter()
            variant()
            if number >= 2:
                times[name].append(time.perf_counter() - began)
    peer = statistics.median(times["fp32"])
    return [
        {
            "name": f"unet {size}x{size}x{channels}, batch {batch}, {width} channels: {name}",
            "ours": statistics.median(found),
            "peer": peer,
            "ratio": statistics.median(found) / peer,
            "spread": [min(found) / peer, max(found) / peer],
        }
        for name, found in times.items()
    ]


def step(
    size: int, channels: int, batch: int, width: int, *, bf16: bool, last: bool
) -> Callable[[], None]:
    """A forward and backward."""
    info = DataInfo(shape=(channels, size, size), count=1, domain=Domain(-1.0, 1.0))
    net = UNet(UNet.Settings(channels=width, channel_mult=(1, 2), blocks=1), Build(data=info))
    x, c_noise = torch.randn(batch, channels, size, size), torch.rand(batch) * 1000
    if last:
        net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = net(x, c_noise).output
        assert output is not None
        output.float().square().mean().backward()
        net.zero_grad()

    return once
