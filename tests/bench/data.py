"""Data feed: augmented images per second of a CIFAR-size loader, on two cores.

50,000 random uint8 images of 32x32 in one mapped shard, read in random order, padded by 4, cropped,
flipped and scaled to [-1, 1], in batches of 512. Ours is `npz-shards` with `crop` and `flip`, read
by two threads. The peers are torchvision's v2 transforms: image by image in a DataLoader with two
worker processes, and on whole batches with two threads, where all images of a batch share one crop
and one flip. The sides alternate in one process, and each number is the median over the rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from advdiff_datasets.augment import Crop, Flip
from advdiff_datasets.shards import NpzShards
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from advdiff_core.engine.augment import Pipeline
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.source import Source
from advdiff_core.interfaces.component import Build

COUNT, BATCH, WORKERS = 50_000, 512, 2
#: Steps per round, and rounds.
STEPS, ROUNDS = 20, 5
TARGET = 20_000
NAME, OURS = "loader, 32x32, crop and flip", "ours, 2 threads"

Batches = Iterator[Tensor]


def our_feed(path: Path, workers: int) -> Batches:
    """The feed of a run, without end."""
    data = NpzShards(NpzShards.Settings(path=path), Build(path="data"))
    told = Build(path="data.augment", data=data.info)
    parts = (("crop", Crop(Crop.Settings(), told)), ("flip", Flip(Flip.Settings(), told)))
    augment = Pipeline(parts=parts, seed=0, batch=BATCH)
    feed = Feed(Source(data), seed=0, place=lambda x: x, workers=workers, augment=augment)
    position = 0
    while True:
        yield feed.batch(position, BATCH, ahead=position + BATCH).x
        position += BATCH


class Images(Dataset):
    """The images of the shard in memory, transformed one by one."""

    def __init__(self, path: Path) -> None:
        self.images = torch.from_numpy(np.load(path)["image"]).permute(0, 3, 1, 2).contiguous()
        self.change = transforms()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.change(self.images[index])


def transforms() -> v2.Compose:
    """Crop, flip and scale."""
    return v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def one_by_one(path: Path) -> Batches:
    """Torchvision in worker processes, without end."""
    loader = DataLoader(
        Images(path), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True,
        drop_last=True, multiprocessing_context="spawn",
    )  # fmt: skip
    while True:
        yield from loader


def whole_batches(path: Path) -> Batches:
    """Torchvision on batches, without end; one crop and one flip for all images of a batch."""
    data = Images(path)
    while True:
        order = torch.randperm(COUNT)
        for low, high in pairwise(range(0, COUNT, BATCH)):
            torch.set_num_threads(WORKERS)
            batch = data.change(data.images[order[low:high]])
            torch.set_num_threads(1)
            yield batch


def rate(batches: Batches) -> float:
    """Images per second over one round."""
    began, seen = time.perf_counter(), 0
    for _ in range(STEPS):
        seen += len(next(batches))
    return seen / (time.perf_counter() - began)


def per_cpu_second(path: Path) -> float:
    """Images of ours per second of processor time, which neighbours cannot take away."""
    batches = our_feed(path, 0)
    next(batches)
    began = time.process_time()
    seen = sum(len(next(batches)) for _ in range(STEPS))
    return seen / (time.process_time() - began)


def rates_of(path: Path) -> dict[str, list[float]]:
    """Images per second of all sides, in alternation."""
    torch.set_num_threads(1)
    sides: dict[str, Callable[[], Batches]] = {
        OURS: lambda: our_feed(path, WORKERS),
        "torchvision v2, one by one, 2 processes": lambda: one_by_one(path),
        "torchvision v2, whole batches (one crop for all), 2 threads": lambda: whole_batches(path),
    }
    running = {name: make() for name, make in sides.items()}
    for batches in running.values():
        next(batches)
    rates: dict[str, list[float]] = {name: [] for name in running}
    for number in range(ROUNDS):
        for name in list(running)[:: 1 if number % 2 else -1]:
            rates[name].append(rate(running[name]))
    return rates


def compare(path: Path) -> list[dict[str, object]]:
    """Our rate, and an entry per peer: more is better."""
    rates = rates_of(path)
    ours = statistics.median(rates[OURS])
    entries: list[dict[str, object]] = [
        {
            "name": f"{NAME}: rate of ours", "unit": "images/s", "ours": ours,
            "images per processor second": per_cpu_second(path), "target": TARGET,
            "ok": ours >= TARGET,
        }
    ]  # fmt: skip
    for peer, found in rates.items():
        if peer != OURS:
            ratios = sorted(a / b for a, b in zip(rates[OURS], found, strict=True))
            ratio = statistics.median(ratios)
            entries.append({
                "name": f"{NAME}: ours against {peer}", "unit": "images/s", "ours": ours,
                "peer": statistics.median(found), "ratio": ratio,
                "spread": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
                "target": 1.0, "ok": ratio >= 1.0,
            })  # fmt: skip
    return entries


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        image = np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
        np.savez(path, image=image, label=np.arange(COUNT) % 10)
        return compare(path)
