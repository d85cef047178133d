"""Start-up time of the verbs that import no torch: median wall time of whole processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

VERBS = (("--help",), ("plugins",), ("show", "examples/quickstart.toml"))
ROUNDS = 9


def run() -> list[dict[str, object]]:
    """One entry per verb, against an interpreter that does nothing."""
    empty = _median([sys.executable, "-c", "pass"])
    entries = []
    for verb in VERBS:
        ours = _median([sys.executable, "-m", "advdiff_core", *verb])
        entries.append({
            "name": f"advdiff {' '.join(verb)}",
            "ours": ours, "peer": empty, "ratio": ours / empty, "target": 0.3, "ok": ours <= 0.3,
        })  # fmt: skip
    return entries


def _median(command: list[str]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times)
