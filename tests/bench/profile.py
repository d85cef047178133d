"""Where the time of a step goes, and what stood in its way: put back, it is what was before.

Two steps, each in fp32 and bf16: a DDPM step of the U-Net (see `diffusion`), and TRADES-10 of a
wide resnet (see `dra`); a step on digits, whose operations are small, besides. First the share of
each kind of operation in the time of a step, by torch's profiler, whose own cost is in the share
outside of operations. Then the same step with something put back that was removed: the sides take
turns on one thread, and `ratio` is what a step costs now over what it cost before. Both learn from
the same batches, and have the same mean loss.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from advdiff_backbones.wide_resnet import Block, same_padding
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as profiled

from advdiff_core.engine.distributed import World
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.engine.trainer import Trainer
from advdiff_core.layers import at_least_fp32
from tests.bench import diffusion, dra
from tests.bench.duel import Agreement, duel, rounds_of
from tests.bench.sides import pictures, trainer_of

ROUNDS, WARM_UP, PROFILED = 15, 2, 3
#: A removal that costs time is no removal; one of a hundredth drowns in what rounds differ by.
TARGET = 1.01
#: Kinds of operations by parts of their names, the first that fits.
KINDS = {
    "convolutions": ("convolution",),
    "optimizer, clip, average": ("adam", "sgd", "lerp", "foreach", "vector_norm", "Optimizer"),
    "matrix products": ("::mm", "::bmm", "::addmm", "::baddbmm", "attention"),
    "norms": ("group_norm", "batch_norm", "layer_norm"),
    "activations": ("silu", "relu", "softmax"),
    "copies and fills": ("copy", "::to", "cat", "clone", "pad", "fill", "zero", "contiguous"),
}
#: Of a mean loss over these steps, weights and all.
ROUNDING = {"fp32": 1e-4, "bf16": 3e-2}
BEFORE = "before"


def kind_of(name: str) -> str:
    """The kind of an operation."""
    found = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
    return next(found, "other operations")


def shares(name: str, side: Trainer) -> dict[str, object]:
    """Share of each kind of operation in the time of a step."""
    for _ in range(WARM_UP):
        side.train_step()
    with profiled(activities=[ProfilerActivity.CPU]) as found:
        began = time.perf_counter()
        for _ in range(PROFILED):
            side.train_step()
        whole = time.perf_counter() - began
    busy: Counter[str] = Counter()
    for event in found.key_averages():
        busy[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    outside = max(0.0, whole - busy.total())
    told = {kind: busy[kind] / whole for kind in (*KINDS, "other operations")}
    rounded = {f"{kind}, share": round(value, 3) for kind, value in told.items()}
    return {
        "name": f"where the time goes: {name}", **rounded,
        "outside of operations, share": round(outside / whole, 3),
    }  # fmt: skip


def attend_before(q: Tensor, k: Tensor, v: Tensor, _: str = "auto") -> Tensor:
    """Attention that scales its weights, and turns them to fp32 and back."""
    weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return at_least_fp32(weights).softmax(dim=-1).to(v.dtype) @ v


def block_before(self: Block, x: Tensor) -> Tensor:
    """A block that pads a copy of its input."""
    active = self.activation(self.batchnorm_0(x))
    h = F.conv2d(same_padding(active, self.stride), self.conv_0.weight, stride=self.stride)
    h = self.conv_1(self.activation(self.batchnorm_1(h)))
    beside: Tensor = x if self.shortcut is None else self.shortcut(active)
    return beside + h


@contextmanager
def one_by_one(side: Trainer) -> Iterator[None]:
    """The optimizer's loop over tensors, torch's choice on a CPU."""
    for player in side.experiment.players:
        for group in player.optimizer.param_groups:
            group.update(fused=False, foreach=False)
    yield


def small(_: Path) -> Trainer:
    """A step on digits."""
    return trainer_of(
        {
            "advdiff": 1,
            "run": {"seed": 1, "batch": 32, "micro_batch": 32, "precision": "fp32",
                    "images": 10**9, "threads": 1},
            "data": {"use": "digits"},
            "schedule": {"use": "vp-linear"},
            "models": {"student": {"use": "unet", "channels": 32, "channel_mult": [1, 2],
                                   "blocks": 1, "attention": [4]}},
            "terms": {"denoise": {"use": "denoise"}},
            "players": {"student": {"terms": ["denoise"],
                                    "optimizer": {"use": "adamw", "lr": 1e-4}, "ema": [0.999]}},
        }
    )  # fmt: skip


Maker = Callable[[Path], Trainer]


def steps_of() -> dict[str, tuple[str, Maker]]:
    """What is looked at: a precision and its maker."""
    found: dict[str, tuple[str, Maker]] = {
        f"DDPM step, U-Net of {diffusion.CHANNELS} channels, {precision}": (
            precision,
            lambda folder, precision=precision: diffusion.trainer(precision, pictures(folder)),
        )
        for precision in ("fp32", "bf16")
    }
    for name, precision in zip(dra.PRECISIONS, ("fp32", "bf16"), strict=True):
        found[f"TRADES-10, wide resnet, {name}"] = (
            precision,
            lambda folder, name=name: dra.trainer(dra.data(folder), name, "cpu"),
        )
    return {**found, "DDPM step on digits, fp32": ("fp32", small)}


def put_back(name: str, side: Trainer) -> tuple[str, Callable[[], AbstractContextManager[object]]]:
    """What was removed from a step, and a context in which it is back."""
    if name.startswith("TRADES"):
        return "padded copies", lambda: patch.object(Block, "forward", block_before)
    if "digits" in name:
        return "optimizer tensor by tensor", lambda: one_by_one(side)
    where = "advdiff_core.backbones.layers.attend"
    return "attention's weights scaled and in fp32", lambda: patch(where, attend_before)


def loss_of(side: Trainer) -> float:
    """Mean loss of the steps so far."""
    return next(value for key, value in side.stats.means(World()).items() if "loss/" in key)


def compare(name: str, precision: str, make: Maker, folder: Path) -> list[dict[str, object]]:
    """A step now and before."""
    now, before = make(folder), make(folder)
    removed, again = put_back(name, before)

    def step_before() -> None:
        with again():
            before.train_step()

    sides: dict[str, Callable[[], object]] = {"now": now.train_step, BEFORE: step_before}
    times = rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP)
    told = {BEFORE: Agreement(abs(loss_of(now) - loss_of(before)), ROUNDING[precision])}
    return duel(f"{name}, without {removed}", times, told, ours="now", target=TARGET)


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    entries: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (precision, make) in steps_of().items():
            entries.append(shares(name, make(folder)))
            entries += compare(name, precision, make, folder)
    return entries
