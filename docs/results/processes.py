"""Several processes: killed, compared with one, and joined by a link that fails; `processes.md`.

    python docs/results/processes.py --out FOLDER [kills] [worlds] [links]

makes what `processes.json` beside this file lacks, in FOLDER, and writes the page. Delete an entry
to make it anew. About 12 minutes on two quiet cores. `kills` needs Linux, `links` also the right to
make network namespaces.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import process_links as links  # noqa: E402 - beside this file.
import process_runs as runs  # noqa: E402 - beside this file.
import process_worlds as worlds  # noqa: E402 - beside this file.
from lab import commit  # noqa: E402 - beside this file.
from process_page import page  # noqa: E402 - beside this file.

RECORD = HERE / "processes.json"
#: Rounds of kills; those that are a multiple of FIVE have three processes.
ROUNDS, FIVE = 20, 5


class Record:
    """What was found, kept as it comes: a second run makes what is missing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, part: str, name: str, make: Callable[[], Any]) -> Any:
        """What is there, else what `make` finds, with the commit it was found at."""
        entries = self.parts.setdefault(part, {})
        if name not in entries:
            entries[name] = {"found": make(), "commit": commit()}
            self.path.write_text(json.dumps(self.parts, indent=1) + "\n")
            print(part, name, entries[name]["found"], file=sys.stderr, flush=True)
        return entries[name]["found"]

    def of(self, part: str) -> dict[str, Any]:
        """All that is there of a part, by name."""
        return {name: one["found"] for name, one in self.parts.get(part, {}).items()}

    def commits(self) -> list[str]:
        """At which commits it was found."""
        return sorted({one["commit"] for part in self.parts.values() for one in part.values()})


def kills(record: Record, out: Path, rounds: int = ROUNDS) -> None:
    """Rounds in which a process is killed; then all of them are gone on with and compared."""
    for number in range(rounds):
        count = 2 if number % FIVE else 3
        record.get("kills", f"kill-{number:02}", partial(runs.kill, out, number, count))
    open_ones = {
        name: one for name, one in record.of("kills").items() if name not in record.of("resumed")
    }
    runs.go_on(out, open_ones)
    for name, one in open_ones.items():
        record.get("resumed", name, partial(runs.ended_same, out, name, one["processes"]))


def pairs() -> dict[str, tuple[str, tuple[str, str]]]:
    """Comparisons by name: a recipe, and two kinds of runs of it."""
    return {
        f"{recipe}: {', '.join(pair)}": (recipe, pair)
        for recipe in worlds.RECIPES for pair in worlds.PAIRS
    }  # fmt: skip


def compared(record: Record, out: Path) -> None:
    """Processes and shared networks against one process and whole networks."""
    if set(pairs()) <= set(record.of("worlds")):
        return
    worlds.train(out)
    for name, one in pairs().items():
        record.get("worlds", name, partial(worlds.compare, out, *one))


def linked(record: Record, out: Path) -> None:
    """Links that go down, and that lose packets."""
    why = links.refused()
    if why:
        record.parts["refused"] = {"why": {"found": why, "commit": commit()}}
        return
    record.parts.pop("refused", None)
    for end in range(2):
        record.get("links", f"down at {end}", partial(links.cut, out, end))
    for loss in (0.0, links.LOSS):
        record.get("links", f"loss {loss:g}", partial(links.carried, out, loss))
    record.get("links", "same", lambda: links.ended_same(out))


def facts() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "hardware": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores",
        "torch": torch.__version__, "seed": runs.SEED,
    }  # fmt: skip


PARTS: Mapping[str, Callable[[Record, Path], None]] = {
    "links": linked, "worlds": compared, "kills": kills,
}  # fmt: skip


def main() -> None:
    """Make what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the runs; left out: the page alone")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all if left out")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="kills, if not all are wanted")
    given = parser.parse_args()
    record = Record(RECORD)
    for part in (given.parts or PARTS) if given.out is not None else ():
        out = given.out.resolve() / part
        out.mkdir(parents=True, exist_ok=True)
        record.get("facts", part, facts)
        make = partial(kills, rounds=given.rounds) if part == "kills" else PARTS[part]
        make(record, out)
    (HERE / "processes.md").write_text(page(record, ROUNDS))


if __name__ == "__main__":
    main()
