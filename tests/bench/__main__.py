"""Run a suite: `python -m tests.bench --suite step [--json] [--write docs/benchmarks]`."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "results"))
from lab import commit

#: What every entry has; None where there is no such thing. Times are in seconds if nothing else is
#: said, and a ratio is ours over the peer's.
FIELDS = ("name", "ours", "peer", "ratio", "spread", "target", "ok", "hardware", "commit")
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
    made = {"hardware": _hardware(), "commit": commit()}
    found = importlib.import_module(f"tests.bench.{options.suite}").run()
    entries = [{**dict.fromkeys(FIELDS), **entry, **made} for entry in found]
    text = json.dumps(entries, indent=2)
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / f"{options.suite}.json").write_text(text + "\n")
        (options.write / f"{options.suite}.md").write_text(table(options.suite, entries))
    print(text if options.json else table(options.suite, entries))


def table(suite: str, entries: list[dict[str, object]]) -> str:
    """The page of a suite, from its entries."""
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
        told = {key: value for key, value in entry.items() if key not in skip and value is not None}
        lines += [f"| {key} | {_short(value)} |" for key, value in told.items()]
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


if __name__ == "__main__":
    main()
