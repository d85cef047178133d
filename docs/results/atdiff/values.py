"""How values over steps and seeds are told, on the page of AT_Diff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from here import RECORDS
from pages import provenance

__all__ = [
    "HERE", "VARIANTS", "change", "level", "made", "mean", "missing", "seeds", "told",
]  # fmt: skip

#: Where the page and its pictures are.
HERE = Path(__file__).parents[1]
VARIANTS = {
    "updates": "plain, as many updates", "batches": "plain, as many batches",
    "free": "free AT, K = 3",
}  # fmt: skip


def missing(script: str) -> list[str]:
    """What the page says of a part that there is no record of."""
    return [f"Written and not run for want of time; `{script}.py` makes the numbers.", ""]


def made(out: Path, run: str, name: str) -> list[str]:
    """How a record came about, if the run is at hand."""
    found = sorted(out.glob(f"[0-9]*-{run}"))
    command = f"docs/results/atdiff/{name}.py"
    return provenance(RECORDS, found[-1], command, name) if found else []


def change(value: float, against: float) -> float:
    """Difference in per cent."""
    return 100 * (value / against - 1) if against else 0.0


def told(values: Sequence[float], against: Sequence[float] | None = None) -> str:
    """Mean and range over seeds, and the change of the mean where there is something to compare."""
    text = f"{fmean(values):.4g}"
    if len(values) > 1:
        text += f" ({min(values):.3g}-{max(values):.3g})"
    if against is None:
        return text
    lower = sum(a < b for a, b in zip(values, against, strict=True))
    share = f", lower in {lower} of {len(values)}" if len(values) > 1 else ""
    return f"{text}; {change(fmean(values), fmean(against)):+.0f} %{share}"


def level(key: str) -> float:
    """The level at the end of a number's name; 0 without one."""
    end = key.rpartition("_")[2]
    return float(end) if end.replace(".", "", 1).isdigit() else 0.0


def mean(runs: Mapping[str, Mapping[str, float]], key: str) -> float:
    """Mean over seeds."""
    return fmean(one[key] for one in runs.values())


def seeds(runs: Mapping[str, Mapping[str, float]], key: str) -> str:
    """Mean and range over the seeds that have a number."""
    values = [one[key] for one in runs.values() if key in one]
    return told(values) if values else ""
