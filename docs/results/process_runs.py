"""Runs of several processes for `processes.py`: started, killed, gone on with, compared."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lab import toml
from pages import find
from torch import Tensor

from advdiff_core.engine.checkpoint import load

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "tests" / "recipes" / "players.toml"
BATCH, SEED = 16, 2026
#: Dropout masks are drawn for the rows of a process: the one thing that differs by design.
KEYS: dict[str, Any] = {
    "run.log_every": BATCH,
    "run.keep": 100,
    "models.student.dropout": 0.0,
    "schedule.density.sampler": {"use": "toy-doubling", "weighted": True},
}
#: A run that is killed: its steps, steps between checkpoints, and the last step it is killed after.
STEPS, EVERY, LAST = 60, 10, 40
KILLED = {**KEYS, "run.images": STEPS * BATCH, "run.checkpoint_every": EVERY * BATCH}
#: What a row of the log says of the machine.
MACHINE = ("seconds", "images_per_s", "mfu", "model_tflops")


def tables(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as tables, with keys changed."""
    found = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    for key, value in keys.items():
        *way, last = key.split(".")
        place = found
        for name in way:
            place = place.setdefault(name, {})
        place[last] = value
    return found


def command(words: Sequence[object], keys: Mapping[str, Any]) -> list[str]:
    """A command line of `advdiff train`."""
    options = [word for key, value in keys.items() for word in ("-s", f"{key}={toml(value)}")]
    return [sys.executable, "-m", "advdiff_core", "train", *map(str, words), *options]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Variables of a process: one thread, and these scripts' own checkout before any other."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(ROOT), *([known] if known else [])])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


def work(out: Path, count: int, jobs: Sequence[Mapping[str, Any]]) -> None:
    """Trainings in `count` processes that join once; see `process_worker.py`."""
    if not jobs:
        return
    out.mkdir(parents=True, exist_ok=True)
    note = out / f"jobs-{count}.json"
    note.write_text(json.dumps(list(jobs)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    worker = Path(__file__).with_name("process_worker.py")
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(note)],
            env=environment(announced(rank, count, "127.0.0.1", port)),
        )
        for rank in range(count)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"trainings in {count} processes failed; see above")


def announced(rank: int, count: int, address: str, port: int) -> dict[str, str]:
    """What a launcher tells a process."""
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port),
    }  # fmt: skip


# What came of a run.


def saved(run: Path) -> list[int]:
    """Images at which it has checkpoints."""
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


def leaves(state: Any, place: str = "") -> dict[str, Any]:
    """Every leaf of a state by its place, but for how much went through the networks at once."""
    if isinstance(state, dict):
        parts = [leaves(value, f"{place}/{key}") for key, value in state.items()]
    elif isinstance(state, list):
        parts = [leaves(value, f"{place}/{index}") for index, value in enumerate(state)]
    else:
        return {} if place == "/micro" else {place: state}
    return {key: value for part in parts for key, value in part.items()}


def final(run: Path) -> dict[str, Any]:
    """The leaves of its newest checkpoint."""
    return leaves(load(run / "checkpoints" / str(saved(run)[-1])).shared)


def rows(run: Path) -> list[dict[str, Any]]:
    """What it logged, without what is the machine's."""
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in MACHINE} for row in read]


def same(run: Path, other: Path) -> bool:
    """Whether two runs ended in the same state and logged the same, bit for bit."""
    a, b = final(run), final(other)
    return a.keys() == b.keys() and rows(run) == rows(other) and all(
        torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name]
        for name in a
    )  # fmt: skip


# Kills.


def steps_of(out: Path, name: str) -> int:
    """Steps that a run has logged; -1 if it has no folder yet."""
    found = sorted(out.glob(f"[0-9]*-{name}"))
    if not found:
        return -1
    log = found[-1] / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def children(launcher: int) -> dict[int, int]:
    """Process ids by rank, of the children that have begun."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks = [int(one[5:]) for one in variables if one.startswith(b"RANK=")]
        found |= {rank: int(pid) for rank in ranks}
    return found


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(out: Path, name: str, step: int, count: int, launcher: subprocess.Popen[str]) -> None:
    """Until a run has logged so many steps; -1: until its processes are there."""
    while launcher.poll() is None:
        there = len(children(launcher.pid)) == count
        if there and steps_of(out, name) >= step:
            return
        time.sleep(0.01)
    sys.exit(f"{name} ended with {launcher.returncode} before it was killed")


def kill(out: Path, number: int, count: int) -> dict[str, Any]:
    """One round: a run whose process of a drawn rank is killed after a drawn step.

    Args:
        out: Folder of the runs.
        number: Of the round. Round 0 kills while the processes start.
        count: Processes.
    """
    draw, name = random.Random(SEED + number), f"kill-{number:02}"
    rank, step = draw.randrange(count), draw.randrange(LAST + 1) if number else -1
    words = command([RECIPE, "--out", out, "--nproc", count], {**KILLED, "run.name": name})
    said = out / f"{name}.stderr"
    with said.open("w") as stderr:
        launcher = subprocess.Popen(
            words, env=environment({}), stdout=subprocess.DEVNULL, stderr=stderr, text=True
        )
    wait_for(out, name, step, count, launcher)
    pids = children(launcher.pid)
    os.kill(pids[rank], signal.SIGKILL)
    began, logged = time.monotonic(), steps_of(out, name)
    while launcher.poll() is None or any(map(is_alive, pids.values())):
        time.sleep(0.01)
    seconds = time.monotonic() - began
    lines = said.read_text().splitlines()
    wanted = f"process {rank} (pid {pids[rank]}): ended by SIGKILL (exit code -9)"
    found = sorted(out.glob(f"[0-9]*-{name}"))
    return {
        "processes": count, "rank": rank, "step": logged, "seconds": seconds,
        "code": launcher.returncode, "checkpoint": bool(found and saved(found[-1])),
        "named": sum(wanted in line for line in lines),
        "errors": sum("error[" in line for line in lines),
        "traceback": any("Traceback" in line for line in lines),
    }  # fmt: skip


def go_on(out: Path, kills: Mapping[str, Mapping[str, Any]]) -> None:
    """Go on with every run that was killed, or begin again without a checkpoint.

    Runs that are never stopped are made by the same processes, one for each number of them.
    """
    for count in sorted({one["processes"] for one in kills.values()}):
        mine = [name for name, one in kills.items() if one["processes"] == count]
        work(out, count, list(_going_on(out, [f"whole-{count}", *mine])))


def _going_on(out: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        found = sorted(out.glob(f"[0-9]*-{name}"))
        at = saved(found[-1]) if found else []
        if not at:
            yield {"tables": tables({**KILLED, "run.name": name}), "out": str(out)}
        elif at[-1] < STEPS * BATCH:
            yield {"resume": str(found[-1])}


def ended_same(out: Path, name: str, count: int) -> bool:
    """Whether a run that was killed ended as the one of so many processes that never stopped."""
    return same(find(out, name), find(out, f"whole-{count}"))
