"""Checkpoints: saving and reading the whole state of a run against torch.save and torch.load.

The state is that of DDPM++ for CIFAR-10 (55.7 M parameters) with one average and Adam's moments,
892 MB. Ours is written with a checksum of every byte, flushed to the disk and published by one
rename; reading it checks every byte. torch.save does none of this, so that it is timed twice: as it
is, and flushed to the disk too. A run that saves every five minutes stands still for the time of
one save: its share of the run is an entry of its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from advdiff_backbones.ddpmpp_unet import DDPMppUNet
from torch import Tensor

from advdiff_core.engine.checkpoint import Store, load, save
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain
from tests.bench.duel import Agreement, duel, rounds_of

ROUNDS, WARM_UP = 5, 1
#: Seconds between checkpoints, and the share of them that a save may take.
EVERY, SHARE = 300.0, 0.01
#: Most that ours may take against a peer that flushes: the checksum is ours alone.
TARGET = 1.5


def state() -> dict[str, Any]:
    """What a run saves: weights, their average, and both moments of Adam."""
    info = DataInfo(shape=(3, 32, 32), count=1, domain=Domain(-1.0, 1.0))
    weights = DDPMppUNet(DDPMppUNet.Settings(), Build(data=info)).state_dict()

    def like(scale: float) -> dict[str, Tensor]:
        return {name: one.detach() * scale for name, one in weights.items()}

    return {
        "models": {"student": dict(weights)}, "ema": {"student": [like(1.0)]},
        "optimizers": {"student": {"first": like(0.1), "second": like(0.01)}},
    }  # fmt: skip


def flushed(path: Path) -> None:
    """Have a file on the disk, as ours is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def savers(shared: dict[str, Any], folder: Path) -> dict[str, Callable[[], None]]:
    """All sides that write."""

    def ours() -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        (folder / "ours").mkdir()
        save(Store(root=folder / "ours"), 1, shared=shared, rank_state={}, meta={})

    def peer() -> None:
        (folder / "peer.pt").unlink(missing_ok=True)
        torch.save(shared, folder / "peer.pt")

    def durable() -> None:
        peer()
        flushed(folder / "peer.pt")

    return {"ours": ours, "torch.save, not flushed": peer, "torch.save": durable}


def readers(folder: Path) -> dict[str, Callable[[], Any]]:
    """All sides that read."""
    return {
        "ours": lambda: load(folder / "ours" / "1").shared,
        "torch.load": lambda: torch.load(folder / "peer.pt", weights_only=True),
    }


def gap(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Largest difference of the weights of two states."""
    weights, others = one["models"]["student"], other["models"]["student"]
    pairs = [(weights[name], others[name]) for name in sorted(weights.keys() | others.keys())]
    return max((a.float() - b.float()).abs().max().item() for a, b in pairs)


def stall(times: list[float]) -> dict[str, object]:
    """What share of a run a save takes."""
    share = statistics.median(times) / EVERY
    return {
        "name": f"standing still for a checkpoint every {EVERY:g} s", "ours": share,
        "target": SHARE, "ok": share <= SHARE,
    }  # fmt: skip


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, shared = Path(name), state()
        sides = savers(shared, folder)
        times = rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP)
        reading = readers(folder)
        same = {
            side: Agreement(gap(shared, read()), 0.0) for side, read in reading.items()
        }  # fmt: skip
        agreements = {side: same["torch.load"] for side in sides if side != "ours"}
        written = duel("save", times, agreements, target=TARGET)
        read = rounds_of(reading, rounds=ROUNDS, warm_up=WARM_UP)
        found = duel("read", read, {"torch.load": same["ours"]}, target=TARGET)
        return [*written, *found, stall(times["ours"])]
