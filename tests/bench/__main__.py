"""Run a suite: `python -m tests.bench --suite step [--json] [--write docs/benchmarks]`."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
from pathlib import Path

SUITES = (
    "step",
    "profile",
    "precision",
    "startup",
    "data",
    "attack_view",
    "robustadv",
    "atdiff",
    "adt",
    "dra",
    "dra_teacher",
    "samplers",
    "diffusion",
    "attacks",
    "checkpoint",
)


def main() -> None:
    """Run one suite, print its table, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, required=True)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", type=Path, help="folder for SUITE.json and SUITE.md")
    options = parser.parse_args()
    entries = importlib.import_module(f"tests.bench.{options.suite}").run()
    for entry in entries:
        entry.update(hardware=_hardware(), commit=_commit())
    text = json.dumps(entries, indent=2)
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / f"{options.suite}.json").write_text(text + "\n")
        (options.write / f"{options.suite}.md").write_text(_table(options.suite, entries))
    print(text if options.json else _table(options.suite, entries))


def _table(suite: str, entries: list[dict[str, object]]) -> str:
    lines = [
        f"# Benchmark: {suite}",
        "",
        f"Written by `python -m tests.bench --suite {suite} --write docs/benchmarks` "
        f"at commit {entries[0]['commit']} on {entries[0]['hardware']}.",
        "",
    ]
    for entry in entries:
        lines += [f"## {entry['name']}", "", "| quantity | value |", "| --- | --- |"]
        skip = ("name", "hardware", "commit")
        lines += [f"| {key} | {_short(value)} |" for key, value in entry.items() if key not in skip]
        lines.append("")
    return "\n".join(lines)


def _short(value: object) -> str:
    if isinstance(value, list):
        return " - ".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _hardware() -> str:
    import torch

    names = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    model = names[0].split(":")[1].strip() if names else platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {len(names)} cores, {gpu}, torch {torch.__version__}"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
