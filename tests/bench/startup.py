"""Start-up time of the verbs that import no torch: median wall time of whole processes."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERBS = (("--help",), ("plugins",), ("show", "examples/quickstart.toml"))
ROUNDS = 9
#: Further distributions with which the listing is timed, and how long it may take then.
CROWD = 200
CROWD_TARGET = 0.5


def run() -> list[dict[str, object]]:
    """One entry per verb, against an interpreter that does nothing; two amid many plugins."""
    empty, _ = _median([sys.executable, "-c", "pass"])
    entries = [_entry(f"advdiff {' '.join(verb)}", verb, empty, 0.3) for verb in VERBS]
    with tempfile.TemporaryDirectory() as folder:
        _install(Path(folder), CROWD)
        for verb, target in ((("--help",), 0.3), (("plugins",), CROWD_TARGET)):
            name = f"advdiff {' '.join(verb)}, {CROWD} more distributions installed"
            entries.append(_entry(name, verb, empty, target, folder))
    return entries


def _entry(
    name: str, verb: tuple[str, ...], empty: float, target: float, folder: str = ""
) -> dict[str, object]:
    ours, busy = _median([sys.executable, "-m", "advdiff_core", *verb], folder)
    return {
        "name": name, "ours": ours, "processor seconds": busy, "peer": empty, "ratio": ours / empty,
        "target": target, "ok": ours <= target,
    }  # fmt: skip


def _install(folder: Path, number: int) -> None:
    """The metadata of distributions with two components each."""
    for index in range(number):
        place = folder / f"advdiff_crowd{index}-1.0.dist-info"
        place.mkdir()
        head = f"Metadata-Version: 2.1\nName: advdiff-crowd{index}\nVersion: 1.0\n"
        (place / "METADATA").write_text(head)
        lines = "".join(f"crowd{index}-{letter} = crowd:Part\n" for letter in "ab")
        (place / "entry_points.txt").write_text(f"[advdiff.v1.attack]\n{lines}")


def _median(command: list[str], folder: str = "") -> tuple[float, float]:
    """Wall time, and processor time, which a busy machine changes less."""
    environment = {**os.environ, "PYTHONPATH": folder} if folder else None
    times, busy = [], []
    for _ in range(ROUNDS):
        before, began = _used(), time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, env=environment)
        times.append(time.perf_counter() - began)
        busy.append(_used() - before)
    return statistics.median(times), statistics.median(busy)


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
