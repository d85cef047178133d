"""TRADES-10 of a wide resnet: a recipe's training step against a plain reading of the algorithm.

The plain side is Zhang et al. (2019) as one writes it down: the network is switched to evaluation
mode and back, the clean prediction is computed anew in every step of the attack, with its graph,
and once more for the loss, the attack builds the graph of the parameters, float32, contiguous. Ours
is the recipe: `trades` on a view attacked by `pgd` in evaluation mode, in float32 and in bfloat16
with channels_last. Weights, batches, rate and decay are the same on all sides.

Counted in forwards (a backward towards the input is one more, one towards the parameters two for
each forward that it passes): plain 10 (2 + 1) + 3 (1 + 2) = 39, ours 1 + 10 (1 + 1) + 2 (1 + 2) =
27, so that 1.44 is what passes alone give. The sides take turns on one thread; a ratio is the
median over the rounds. Curves are those of the same steps: a second plain side, whose attacks begin
elsewhere, says how far two of them lie apart.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import recipe_from_dict
from tests.bench.sides import ratios

EPS, STEP, STEPS, BETA, LR, DECAY = 8 / 255, 2 / 255, 10, 6.0, 0.05, 5e-4
ROUNDS, WARM_UP = 24, 3
#: Depth, width and batch by device.
SIZES = {"cpu": (16, 2, 16), "cuda": (28, 10, 128)}
PRECISIONS = {"fp32": ("fp32", "auto"), "bf16, channels_last": ("bf16", True)}
PLAIN_UNITS, OUR_UNITS = 39, 27
TARGETS = {"fp32": 1.3, "bf16, channels_last": 2.0}


def data(folder: Path) -> Path:
    """Images of ten classes: ten faint pictures in noise, on the grid of bytes."""
    numbers = np.random.default_rng(0)
    classes, y = numbers.normal(0, 25, (10, 32, 32, 3)), numbers.integers(0, 10, 2048)
    pixels = np.clip(128 + classes[y] + numbers.normal(0, 40, (2048, 32, 32, 3)), 0, 255)
    np.savez(folder / "data.npz", x=pixels.astype(np.uint8), y=y)
    return folder / "data.npz"


def trainer(file: Path, name: str, device: str) -> Trainer:
    """Our side in a precision, past the contract checks of the first steps."""
    precision, last = PRECISIONS[name]
    depth, width, batch = SIZES[device]
    attack = {"use": "pgd", "steps": STEPS, "step": STEP, "start": "gaussian", "keep": "last"}
    perturb = {"use": "attack", "objective": "kl", "mode": "eval", "radius": EPS, "attack": attack}
    sgd = {"use": "sgd", "lr": LR, "momentum": 0.9, "weight_decay": DECAY, "decay": "all"}
    net = {"use": "wide-resnet", "parametrization": "none", "depth": depth, "width": width}
    made = recipe_from_dict({
        "advdiff": 1,
        "run": {"seed": 1, "batch": batch, "micro_batch": batch, "precision": precision,
                "channels_last": last, "images": 10**9, "threads": 1, "deterministic": False},
        "data": {"use": "tensor-file", "path": str(file), "images": "x", "labels": "y",
                 "domain": [0.0, 1.0]},
        "models": {"student": net},
        "views": {"adv": {"from": "image", "perturb": perturb}},
        "terms": {"robust": {"use": "trades", "beta": BETA}},
        "players": {"student": {"terms": ["robust"], "optimizer": sgd, "ema": []}},
    })  # fmt: skip
    ticks: Any = None
    found = Trainer(assemble(made, device=device), world=World(), ticks=ticks, stop=StopFlag())
    found.index = 2
    return found


class Plain:
    """The algorithm as one writes it down, on the batches that our side sees.

    Args:
        twin: A trainer whose weights and batches it takes.
        seed: Seed of where its attacks begin.
    """

    def __init__(self, twin: Trainer, seed: int) -> None:
        self.net: Any = copy.deepcopy(twin.scene.roles["student"].module)
        self.net.to(memory_format=torch.contiguous_format).train()
        self.feed, self.batch, self.nimg = twin.experiment.feed(), twin.batch, 0
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=LR, momentum=0.9, weight_decay=DECAY
        )
        device = next(self.net.parameters()).device
        self.numbers = torch.Generator(device).manual_seed(seed)
        self.losses: list[Tensor] = []

    def train_step(self) -> None:
        """One step."""
        rows = self.feed.batch(self.nimg, self.batch, ahead=self.nimg + self.batch)
        self.nimg += self.batch
        x, y = rows.x.contiguous(), rows.y
        loss = trades(self.net, x, y, self.numbers)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach())


def trades(net: nn.Module, x: Tensor, y: Tensor, numbers: torch.Generator) -> Tensor:
    """Attack and loss of Zhang et al. (2019)."""
    net.eval()
    noise = torch.empty_like(x).normal_(generator=numbers)
    adv = x + 0.001 * noise
    for _ in range(STEPS):
        adv.requires_grad_()
        ahead, before = net(adv).output.log_softmax(1), net(x).output.softmax(1)
        (slope,) = torch.autograd.grad(F.kl_div(ahead, before, reduction="sum"), adv)
        adv = adv.detach() + STEP * slope.sign()
        adv = torch.min(torch.max(adv, x - EPS), x + EPS).clamp(0, 1)
    net.train()
    natural = F.cross_entropy(net(x).output, y)
    ahead, before = net(adv).output.log_softmax(1), net(x).output.softmax(1)
    return natural + BETA * F.kl_div(ahead, before, reduction="batchmean")


class Ours:
    """A trainer with its losses written down."""

    def __init__(self, made: Trainer) -> None:
        self.made = made
        self.losses: list[float] = []

    def train_step(self) -> None:
        """One step."""
        self.made.train_step()

    def note(self) -> None:
        """Read the loss of the step, outside of its time."""
        self.losses.append(self.made.stats.means(World())["loss/robust"])


def in_turns(sides: Mapping[str, Plain | Ours], device: str) -> dict[str, list[float]]:
    """Seconds of the steps of each side."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(WARM_UP + ROUNDS):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[side].train_step()
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                times[side].append(time.perf_counter() - began)
            one = sides[side]
            if isinstance(one, Ours):
                one.note()
    return times


def apart(one: list[float], other: list[float]) -> float:
    """How far two curves lie apart: the mean relative difference over windows of a third."""
    third = max(len(one) // 3, 1)
    means = [
        [statistics.fmean(curve[low : low + third]) for low in range(0, 3 * third, third)]
        for curve in (one, other)
    ]
    return statistics.fmean(abs(a - b) / b for a, b in zip(*means, strict=True))


def compare(device: str, file: Path) -> list[dict[str, object]]:
    """The entries of one device."""
    first = trainer(file, "fp32", device)
    sides: dict[str, Plain | Ours] = {
        "plain": Plain(first, 0), "plain again": Plain(first, 1), "fp32": Ours(first),
        "bf16, channels_last": Ours(trainer(file, "bf16, channels_last", device)),
    }  # fmt: skip
    times = in_turns(sides, device)
    curves = {side: [float(value) for value in one.losses] for side, one in sides.items()}
    return [_entry(device, name, times, curves) for name in PRECISIONS]


def _entry(
    device: str, name: str, times: dict[str, list[float]], curves: dict[str, list[float]]
) -> dict[str, object]:
    depth, width, batch = SIZES[device]
    found = ratios(times, name, "plain")
    ratio, noise = statistics.median(found), apart(curves["plain again"], curves["plain"])
    distance = apart(curves[name], curves["plain"])
    same = distance <= max(3 * noise, 0.02)
    return {
        "name": f"TRADES-10, wide-resnet {depth}-{width}, {device}: {name}",
        "batch": batch,
        "ours": statistics.median(times[name]),
        "peer": statistics.median(times["plain"]),
        "forwards counted, ours": OUR_UNITS,
        "forwards counted, peer": PLAIN_UNITS,
        "times faster by the count": PLAIN_UNITS / OUR_UNITS,
        "ratio": ratio,
        "spread": [found[len(found) // 4], found[3 * len(found) // 4]],
        "target": 1 / TARGETS[name],
        "times faster": 1 / ratio,
        "times faster, asked": TARGETS[name],
        "loss at the end, ours and peer": [curves[name][-1], curves["plain"][-1]],
        "distance of the loss curves": distance,
        "distance of two plain ones": noise,
        "same loss curve": same,
        "ok": ratio * TARGETS[name] <= 1 and same,
    }


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as folder:
        file = data(Path(folder))
        return [entry for device in devices for entry in compare(device, file)]
