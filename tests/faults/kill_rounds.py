"""Kill a run again and again and go on with it, until it is done; `test_kills.py` runs this.

Each attempt is a forked child of one process that has imported torch. Half of the attempts die by
SIGKILL after a number of steps drawn by seed, half at an operation of a save drawn by seed.

    python kill_rounds.py RECIPE FOLDER ROUNDS
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path

import torch

from advdiff_core.engine import failpoints
from advdiff_core.engine.api import train
from advdiff_core.engine.checkpoint import load, newest_valid
from advdiff_core.engine.metrics_log import read_metrics
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe

OPERATIONS = ("write", "fsync", "sync_dir", "rename", "mkdir")


def main() -> None:
    """Run the rounds; print a JSON object."""
    recipe, folder, rounds = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    draw = random.Random(2024)
    whole = train(recipe, out=folder / "whole").run
    run, kills, inside, finished = folder / "killed" / "00000-players", 0, 0, 0
    while kills < rounds:
        fault = f"save.{draw.choice(OPERATIONS)}:{draw.randint(1, 3)}:kill" if kills % 2 else ""
        steps = draw.randint(1, 3)
        pid = os.fork()
        if pid == 0:
            attempt(recipe, folder, run, fault, steps)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            # The run was finished before its turn to die came: begin another one.
            assert os.waitstatus_to_exitcode(status) == 0, status
            check(whole, run)
            finished += 1
            os.rename(run.parent, folder / f"done-{finished}")
            continue
        kills += 1
        inside += bool(fault)
    train(recipe, resume=run if run.exists() else None, out=folder / "killed")
    check(whole, run)
    print(json.dumps({"kills": kills, "inside_save": inside, "finished": finished + 1}))


def attempt(recipe, folder, run, fault, steps) -> None:
    """Train in this (forked) process until the planned death."""
    os.environ[failpoints.VARIABLE] = fault
    failpoints._planned.cache_clear()
    failpoints._calls.clear()
    taken = 0
    original = Trainer.train_step

    def train_step(self):
        nonlocal taken
        original(self)
        taken += 1
        if not fault and taken > steps:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer.train_step = train_step
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(recipe, resume=run if run.exists() else None, out=folder / "killed")
    os._exit(0)


def check(whole: Path, run: Path) -> None:
    """The finished run equals the one that never stopped; no metric is doubled or lost."""
    assert tree_equal(newest(whole), newest(run)), "the weights differ"
    rows = [read_metrics(path / "metrics.jsonl") for path in (whole, run)]
    for row in (*rows[0], *rows[1]):
        row.pop("seconds"), row.pop("images_per_s")
    assert rows[0] == rows[1], "the metrics differ"


def newest(run: Path) -> dict:
    """Shared state of the newest checkpoint."""
    path, _ = newest_valid(run / "checkpoints")
    assert path is not None
    return load(path).shared


def tree_equal(a, b) -> bool:
    """Bit-equality of nested state."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(tree_equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(tree_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


if __name__ == "__main__":
    main()
