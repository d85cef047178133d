"""What pages of results share: records, tables, and how numbers came about."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

__all__ = ["find", "provenance", "record", "spread", "table"]


def record(records: Path, name: str) -> Any:
    """A record of a folder, or None if its script has not been run."""
    path = records / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def find(out: Path, name: str) -> Path:
    """The run of that name."""
    return sorted(out.glob(f"[0-9]*-{name}"))[-1]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers with four digits."""

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return [*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows), ""]


def provenance(records: Path, run: Path, command: str, name: str) -> list[str]:
    """How a run and the record of that name came about."""
    newest = max(run.glob("checkpoints/*/"), key=lambda path: int(path.name))
    facts = json.loads((newest / "state.json").read_text())["meta"]["provenance"]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return [
        f"`{command}`: commit {record(records, 'commits')[name]}, "
        f"{facts['machine']} ({facts['cpu_capability']}), {facts['threads']} thread, "
        f"{facts['device']}, other jobs beside it; torch {facts['torch']}, {facts['autocast']}; "
        f"{last['nimg']:,} images in {last['seconds']:.0f} s for `{run.name.split('-', 1)[1]}`.",
        "",
    ]


def spread(values: Sequence[float]) -> str:
    """Mean, and the range over seeds if there are several."""
    mean = f"{fmean(values):.4f}"
    return f"{mean} ({min(values):.4f}-{max(values):.4f})" if len(values) > 1 else mean
