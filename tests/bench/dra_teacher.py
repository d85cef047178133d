"""What the teacher of DRA adds to a training step, counted: up to a tap, whole, at two levels.

Multiply-accumulates per image, of torch's own counter on tensors without numbers, so nothing is
timed and nothing depends on the machine. The step is that of DM-AT as released (Wang et al., 2023):
a forward for the clean prediction, ten forwards with a backward towards the input, and two forwards
with a whole backward, of WRN-28-10 on 32x32 images. The teacher is EDM's network for CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from advdiff_backbones.ddpmpp_unet import DDPMppUNet
from advdiff_backbones.wide_resnet import WideResNet
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from advdiff_core import Build, DataInfo, Domain

ATTACK_STEPS, ONE_LEVEL, TWO_LEVELS = 10, 0.06, 0.11
TAPS = ("dec.8x8_in0", "dec.8x8_in1", "dec.8x8_block4")
DATA = DataInfo(shape=(3, 32, 32), count=64, domain=Domain(-1.0, 1.0), classes=10)


def counted(run: Callable[[], Any]) -> int:
    """Multiply-accumulates of `run`; attention is counted as plain products."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        run()
    return int(counter.get_total_flops()) // 2


def passes_of(net: WideResNet, x: Tensor) -> dict[str, int]:
    """A forward, one with a backward towards the input, one with a whole backward."""

    def backward(*, weights: bool) -> None:
        net.requires_grad_(weights)
        point = x.detach().requires_grad_(not weights)
        net(point).output.sum().backward()

    with torch.no_grad():
        forward = counted(lambda: net(x))
    return {
        "forward": forward,
        "input": counted(lambda: backward(weights=False)),
        "whole": counted(lambda: backward(weights=True)),
    }


def teacher_of(net: DDPMppUNet, x: Tensor, tap: str | None) -> int:
    """A forward of the teacher, up to a tap or whole."""
    level, label = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    taps = () if tap is None else (tap,)
    with torch.no_grad():
        return counted(lambda: net(x, level, label, taps=taps, stop_at=tap))


def parameters(net: nn.Module) -> int:
    """Numbers that a network holds."""
    return sum(p.numel() for p in net.parameters())


def run() -> list[dict[str, object]]:
    """The counts."""
    with FakeTensorMode():
        build = Build(path="models.student", data=DATA)
        student = WideResNet(WideResNet.Settings(), build).eval()
        teacher = DDPMppUNet(DDPMppUNet.Settings(conditional=True), build).eval()
        x = torch.zeros(1, *DATA.shape)
        costs = passes_of(student, x)
        whole = teacher_of(teacher, x, None)
        cut = {tap: teacher_of(teacher, x, tap) for tap in TAPS}
    step = costs["forward"] + ATTACK_STEPS * costs["input"] + 2 * costs["whole"]
    sizes: dict[str, object] = {
        "name": "Multiply-accumulates per image",
        "student (parameters)": parameters(student),
        "student, forward (GMAC)": costs["forward"] / 1e9,
        "student, forward and input backward (GMAC)": costs["input"] / 1e9,
        "student, forward and whole backward (GMAC)": costs["whole"] / 1e9,
        "step of DM-AT with ten attack steps (GMAC)": step / 1e9,
        "teacher (parameters)": parameters(teacher),
        "teacher, whole forward (GMAC)": whole / 1e9,
    }
    return [sizes, *(_entry(tap, macs, whole, step) for tap, macs in cut.items())]


def _entry(tap: str, macs: int, whole: int, step: int) -> dict[str, object]:
    one, two = macs / step, 2 * macs / step
    return {
        "name": f"Teacher up to {tap}",
        "forward (GMAC)": macs / 1e9,
        "share of the whole forward": macs / whole,
        "added to a step, one noise level": one,
        "added to a step, two noise levels": two,
        "added by whole forwards, one and two levels": [whole / step, 2 * whole / step],
        "target": [ONE_LEVEL, TWO_LEVELS],
        "ok": one <= ONE_LEVEL and two <= TWO_LEVELS,
    }
