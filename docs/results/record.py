"""Write a finished run as a page: `python docs/results/record.py RUN PAGE.md "command"`.

Figures of the docs are written by this script and never by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tomli


def page(run: Path, title: str, command: str) -> str:
    """The page of a run, from its folder alone."""
    found = json.loads((run / "evaluation.json").read_text())
    recipe = tomli.loads((run / "recipe.lock.toml").read_text())
    state = json.loads(next(iter(sorted(run.glob("checkpoints/*/state.json")))).read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    facts, lock = state["meta"]["provenance"], recipe["lock"]
    seconds = rows[-1]["seconds"]
    lines = [
        f"# {title}",
        "",
        f"Written by `docs/results/record.py` from a run of `{command}`. Small-scale.",
        "",
        "| what | value |",
        "| --- | --- |",
        f"| commit | {lock.get('git', {}).get('commit', 'unknown')[:12]} |",
        f"| hardware | {facts['machine']}, {facts['cpu_capability']}, {facts['threads']} threads, "
        f"{facts['device']} |",
        f"| torch | {facts['torch']} |",
        f"| precision | {facts['autocast']} |",
        f"| seed | {recipe['run']['seed']} |",
        f"| images | {found['nimg']:,} |",
        f"| seconds, pictures included | {seconds:.0f} |",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.4g} |" for name, value in found["metrics"].items()),
        *(f"| {name} (last mean) | {value:.4g} |" for name, value in found["losses"].items()),
        "",
        "Protocols:",
        "",
    ]
    for name, protocol in found["protocols"].items():
        words = "; ".join(f"{key} {value}" for key, value in protocol.items())
        lines.append(f"- {name}: {words}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    target = Path(sys.argv[2])
    target.write_text(page(Path(sys.argv[1]), target.stem.replace("-", " "), sys.argv[3]))
