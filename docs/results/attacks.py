"""Compare our AutoAttack with pyautoattack, example by example and by time; write `attacks.md`.

    python docs/results/attacks.py --data FOLDER [--cache FILE] [--images 500] [--device cpu]

FOLDER holds `data/cifar10` and `weights/` with published classifiers as safetensors; it may be
named by ADVDIFF_REAL_DATA instead. Both sides get the same images in the same blocks, in turns, on
one thread. `--cache` (by default `attacks.json` beside this file, which holds all results) lets a
run that was cut off go on; delete it to measure anew. About 25 minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attack_sides import (
    FULL,
    SEED,
    ClassifierVictim,
    Memory,
    broken,
    images,
    network,
    ours,
    theirs,
    timed,
)
from torch import Tensor, nn

HERE = Path(__file__).parent
MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
#: Images attacked together, as pyautoattack has it by default.
BLOCK = 250
STANDARD, ROBUST = "cifar10_resnet20_standard", "cifar10_resnet2b_at_linf2"
BIGGER = "cifar10_resnet4b_at_linf2"
#: Whole suites: network, radius in 255ths, settings. The first is the one that is timed.
SUITES = (
    (ROBUST, 2, FULL),
    (BIGGER, 2, {"steps": 50, "targets": 5, "queries": 1000}),
    (STANDARD, 2, {"steps": 20, "targets": 9, "queries": 500}),
    (STANDARD, 8, {"steps": 20, "targets": 9, "queries": 500}),
)
#: Attacks alone, each on all images: network, radius in 255ths, settings.
ALONE = (
    (ROBUST, 2, {"steps": 100, "targets": 3, "queries": 1000}),
    (BIGGER, 2, {"steps": 50, "targets": 1, "queries": 500}),
    (STANDARD, 2, {"steps": 30, "targets": 1, "queries": 100}),
)
#: Images, and settings, on which the savings are switched off one by one.
SAVED_ON, SAVED_KEYS = 250, {"steps": 20, "targets": 2, "queries": 300}


class Bench:
    """Networks, images and what was measured so far."""

    def __init__(self, folder: Path, cache: Path, count: int, device: str) -> None:
        self.memory = Memory(cache)
        self.folder, self.count, self.device = folder, count, device
        self.x, self.y = images(folder / "data", count, device)
        self._networks: dict[str, nn.Module] = {}

    def network(self, name: str) -> nn.Module:
        """A published classifier."""
        if name not in self._networks:
            self._networks[name] = network(self.folder / "weights", name, self.device)
        return self._networks[name]

    def blocks(self) -> Iterator[Tensor]:
        """Numbers of the images of each block."""
        yield from torch.arange(self.count, device=self.device).split(BLOCK)

    def correct(self, name: str, rows: Tensor) -> Tensor:
        """Those of `rows` that the network classifies rightly."""
        with torch.no_grad():
            right = self.network(name)(self.x[rows]).argmax(1) == self.y[rows]
        return rows[right]

    def duel(  # noqa: PLR0913 - what attacks what, and with what.
        self,
        net: str,
        member: str,
        radius: int,
        keys: dict[str, int],
        left: list[Tensor],
        turn: int,
        *,
        same: bool,
    ) -> list[dict[str, Any]]:
        """Both sides on the images they have left, `same`: from the same random numbers."""
        model, results = self.network(net), [{}, {}]
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            run = (ours, theirs)[side](model, member, radius / 255, keys, same=same)
            rows = left[side]
            x, y = self.x[rows], self.y[rows]
            found, seconds = timed(run, x, y, rows.tolist()) if len(rows) else (x, 0.0)
            beaten = broken(model, found, x, y, radius / 255) if len(rows) else rows.bool()
            results[side] = {"seconds": seconds, "broken": rows[beaten].tolist()}
        say(f"{net} {radius}/255 {member}: " + ", ".join(
            f"{len(r['broken'])} broken in {r['seconds']:.1f} s" for r in results))  # fmt: skip
        return results


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def matches(
    bench: Bench, kind: str, which: tuple[tuple[str, int, dict[str, int]], ...]
) -> list[dict[str, Any]]:
    """Duels of all attacks on all blocks.

    Args:
        bench: Networks and images.
        kind: "suite": each attack on what its own side has left, whose turn is first alternates;
            "alone": on all samples that are classified rightly, from the same random numbers.
        which: Networks, radii and settings.
    """
    found = []
    for net, radius, keys in which:
        result = {"net": net, "radius": radius, "keys": keys, "members": {}, "clean": 0}
        for number, rows in enumerate(bench.blocks()):
            correct = bench.correct(net, rows)
            result["clean"] += len(correct)
            left = [correct, correct]
            for turn, member in enumerate(MEMBERS):
                key = f"{kind}/{net}/{radius}/{keys}/{bench.count}/{number}/{member}/{bench.device}"
                duel = partial(
                    bench.duel, net, member, radius, keys, left, number + turn, same=kind == "alone"
                )
                both = bench.memory.get(key, duel)
                if kind == "suite":
                    pairs = zip(left, both, strict=True)
                    left = [without(mine, side["broken"]) for mine, side in pairs]
                add(result["members"].setdefault(member, [{}, {}]), both)
        found.append(result)
    return found


def without(rows: Tensor, broken_ones: list[int]) -> Tensor:
    """Rows that are not among those broken."""
    gone = torch.tensor(broken_ones, dtype=rows.dtype, device=rows.device)
    return rows[~torch.isin(rows, gone)]


def add(total: list[dict[str, Any]], both: list[dict[str, Any]]) -> None:
    """Add a block's results to those of the blocks before it."""
    for mine, more in zip(total, both, strict=True):
        mine["seconds"] = mine.get("seconds", 0.0) + more["seconds"]
        mine["broken"] = mine.get("broken", []) + more["broken"]


def savings(bench: Bench) -> dict[str, dict[str, list[float]]]:
    """Seconds of each attack on the robust network, with each saving switched off."""
    rows = bench.correct(ROBUST, torch.arange(min(SAVED_ON, bench.count), device=bench.device))
    ways = {
        "all savings": {},
        "gradients of all parameters too": {"whole": True},
        "one part of any size": {"bucket": 1 << 20},
        "broken samples stay": {"interval": 0},
        "broken samples looked for at each step": {"interval": 1},
    }
    found: dict[str, dict[str, list[float]]] = {way: {} for way in ways}
    for repeat in range(3):
        for member in MEMBERS:
            for way, keys in ways.items():
                key = f"saving/{way}/{member}/{repeat}/{bench.device}/{len(rows)}"
                seconds = bench.memory.get(key, partial(saving, bench, member, rows, dict(keys)))
                found[way].setdefault(member, []).append(seconds)
    return found


def saving(bench: Bench, member: str, rows: Tensor, keys: dict[str, Any]) -> float:
    """Seconds of one attack with other settings."""
    model = bench.network(ROBUST)
    whole = keys.pop("whole", False)
    run = ours(model, member, 2 / 255, SAVED_KEYS, **keys)
    with whole_backward(model) if whole else unchanged():
        _, seconds = timed(run, bench.x[rows], bench.y[rows], rows.tolist())
    say(f"{member} {keys or whole}: {seconds:.2f} s")
    return seconds


@contextmanager
def unchanged() -> Iterator[None]:
    """Nothing is switched off."""
    yield


@contextmanager
def whole_backward(model: nn.Module) -> Iterator[None]:
    """Gradients by `backward`, which fills those of the parameters, as the reference's FAB does."""
    plain, outputs = torch.autograd.grad, ClassifierVictim.outputs

    def grad(loss: Tensor, at: Tensor, **_: Any) -> tuple[Tensor]:
        loss.backward()
        return (at.grad,)

    def unfrozen(victim: ClassifierVictim, x: Tensor) -> Tensor:
        victim.model.requires_grad_(True)
        return outputs(victim, x)

    torch.autograd.grad, ClassifierVictim.outputs = grad, unfrozen
    try:
        yield
    finally:
        torch.autograd.grad, ClassifierVictim.outputs = plain, outputs
        model.zero_grad(set_to_none=True)


def facts(device: str) -> dict[str, str]:
    """Where and with what this was measured."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    hardware = torch.cuda.get_device_name() if device == "cuda" else (
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread")  # fmt: skip
    return {"commit": commit or "unknown", "hardware": hardware, "torch": torch.__version__,
            "precision": "float32", "seed": str(SEED)}  # fmt: skip


def main() -> None:
    """Measure what the cache lacks, and write the page."""
    from attack_page import page

    words = argparse.ArgumentParser()
    words.add_argument("--data", type=Path, default=os.environ.get("ADVDIFF_REAL_DATA"))
    words.add_argument("--cache", type=Path, default=HERE / "attacks.json")
    words.add_argument("--page", type=Path, default=HERE / "attacks.md")
    words.add_argument("--images", type=int, default=500)
    words.add_argument("--device", default="cpu")
    given = words.parse_args()
    if given.data is None:
        words.error("--data or ADVDIFF_REAL_DATA has to name a folder with data/ and weights/")
    torch.set_num_threads(1)
    bench = Bench(Path(given.data), given.cache, given.images, given.device)
    about = bench.memory.get("facts", lambda: facts(given.device))
    whole, single = matches(bench, "suite", SUITES), matches(bench, "alone", ALONE)
    given.page.write_text(page(about, bench.count, whole, single, savings(bench)), encoding="utf-8")


if __name__ == "__main__":
    main()
