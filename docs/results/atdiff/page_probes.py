"""Experiments 3 and 4 on the page of AT_Diff: ablation, cost, gap, noise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from here import RECORDS
from measures import curve
from pages import record, table
from plots import curves
from values import HERE, VARIANTS, level, made, mean, missing, seeds

__all__ = ["ablation", "cost", "robustness"]

BENCH = HERE.parent / "benchmarks/atdiff.json"


def ablation(out: Path) -> list[str]:
    """Experiment 3."""
    found = record(RECORDS, "ablation")
    lines = ["## 3. Norm, size, gradient, cost", ""]
    if found is None:
        return [*lines, *missing("ablation"), *cost()]
    lines += made(out, "ablation-pgd", "ablation")
    runs = found["runs"]
    lines += [
        "Digits as above, one seed, the same number of updates everywhere; Frechet distance at 10",
        "ancestral steps / 10 DDIM steps. alpha: L2 length of a step over a whole sample of 64",
        f"numbers; the ball holds no step back. Plain: {at_ten(runs['plain'])}. Differences below",
        "the range over seeds of the table above say nothing.", "",
    ]  # fmt: skip
    rows = [
        [name, *(at_ten(runs.get(f"{key} {alpha:g}")) for alpha in found["alphas"])]
        for key, name in {
            "l2": "L2", "linf": "Linf", "l1": "L1, one entry", "frozen": "L2, frozen gradient",
        }.items()
    ]  # fmt: skip
    lines += table(("steps", *(f"alpha {alpha:g}" for alpha in found["alphas"])), rows)
    skipped = (f"{key} " for key in ("l2", "linf", "l1", "frozen"))
    prefixes = tuple(skipped)
    others = {key: one for key, one in runs.items() if not key.startswith(prefixes)}
    lines += [f"Other choices, L2 steps of {found['at']:g} unless named:", ""]
    lines += table(("choice", "distance"), [[key, at_ten(one)] for key, one in others.items()])
    return [*lines, *cost()]


def at_ten(numbers: Mapping[str, float] | None) -> str:
    """Distances at ten steps."""
    if numbers is None:
        return ""
    found = [curve(numbers, "frechet", label)[10] for label in ("ddpm", "ddim")]
    return " / ".join(f"{value:.4g}" for value in found)


def cost() -> list[str]:
    """What a step costs, from the benchmark."""
    lines = ["### Cost of a step", ""]
    if not BENCH.exists():
        command = "python -m tests.bench --suite atdiff --write docs/benchmarks"
        return [*lines, f"Not measured yet: `{command}`.", ""]
    rows = [
        [one.get("name", ""), one.get("ratio", ""), one.get("target", "")]
        for one in json.loads(BENCH.read_text())
    ]
    lines += ["From docs/benchmarks/atdiff.json; ratios to plain steps.", ""]
    return [*lines, *table(("step", "ratio", "at most"), rows)]


def robustness(out: Path) -> list[str]:
    """Experiment 4."""
    found = record(RECORDS, "robustness")
    lines = ["## 4. The distribution gap, and noise in the path of sampling", ""]
    if found is None:
        return [*lines, *missing("robustness")]
    lines += made(out, "digits-dpm-free-7", "robustness")
    lines += ["Digits, DDIM, the diffusion models of experiment 1; mean (range) over seeds.", ""]
    for name, runs in found["runs"].items():
        if name.startswith("gap"):
            keys = [key for key in next(iter(runs["free"].values())) if key.startswith("gap_")]
            rows = [[f"`{key}`", *(seeds(runs[one], key) for one in VARIANTS)] for key in keys]
            lines += [f"### Gap at {name.split()[1]} steps", ""]
            lines += table(("number", *VARIANTS.values()), rows)
    lines += ["### Distance with noise of so many sigma(t) added to x_t, 20 steps", ""]
    noise = found["runs"]["noise"]
    names = sorted({key for runs in noise.values() for one in runs.values() for key in one})
    rows = [
        [f"`{key}`", *(seeds(noise[one], key) for one in VARIANTS)]
        for key in sorted(names, key=lambda key: (key.rpartition("_")[0], level(key)))
        if key.startswith("noise_")
    ]
    lines += table(("number", *VARIANTS.values()), rows)
    panel = {
        label: [(0.0, mean(noise[key], "noise_frechet_plain"))]
        + [(one, mean(noise[key], f"noise_frechet_every_{one:g}")) for one in found["levels"]]
        for key, label in VARIANTS.items()
    }
    curves({"noise before every step": panel}, HERE / "atdiff-noise.png")
    return [*lines, "![Distance against noise](atdiff-noise.png)", ""]
