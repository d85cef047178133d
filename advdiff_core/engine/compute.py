"""Device, precision and memory format of a run."""

from __future__ import annotations

import os
from typing import Any

import torch

from advdiff_core.engine.distributed import World
from advdiff_core.errors import UsageError
from advdiff_core.step.scene import Compute
from advdiff_core.types import DataInfo

__all__ = ["LARGE", "choose_compute", "multiplies_bf16"]

#: Height and width from which channels_last is faster on a CPU.
LARGE = 16


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    names = ("amx_bf16", "avx512_bf16")
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in names)


def choose_compute(run: Any, data: DataInfo, world: World, *, device: str | None = None) -> Compute:
    """Resolve the "auto" values of `[run]`: device, precision, memory format, TF32, pinned memory.

    bfloat16 pays on convolutions of any size; points stay in float32. channels_last pays on a CPU
    from `LARGE` pixels on: the measured table is docs/benchmarks/precision.md. TF32 comes with
    bfloat16, beside which it loses nothing; a recipe that asks for fp32 gets all of it. What is for
    a GPU alone is off without one.

    Raises:
        UsageError: If a device is asked for that is not there.
    """
    chosen = _device(device or run.device, world)
    bf16 = run.precision == "bf16" or (
        run.precision == "auto" and data.is_image and multiplies_bf16(chosen)
    )
    last = run.channels_last
    pays = bf16 and (chosen.type == "cuda" or min(data.shape[-2:]) >= LARGE)
    channels_last = data.is_image and (last is True or (last == "auto" and pays))
    on_gpu = chosen.type == "cuda"
    return Compute(
        device=chosen,
        autocast=torch.bfloat16 if bf16 else None,
        channels_last=channels_last,
        tf32=on_gpu and (bf16 if run.tf32 == "auto" else run.tf32),
        pinned=on_gpu and run.pinned is not False,
    )


def _device(name: str, world: World) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        message = "no CUDA device is available here"
        raise UsageError(message, code="R10", where="run.device", fix='use "auto" or "cpu"')
    if name == "cpu" or not available:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", world.rank))
    # More processes than GPUs share them.
    return torch.device("cuda", local % torch.cuda.device_count())
