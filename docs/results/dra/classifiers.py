"""The main table: TRADES with and without synthetic images, with and without alignment.

    python docs/results/dra/classifiers.py --out RUNS --data FOLDER --base RUN [ARM-SEED ...]

See teachers.py for what the options name, and arms.py for what is trained. Accuracy on all test
images, and under the first two attacks of AutoAttack (auto-PGD on the cross-entropy, then targeted)
on the first 1,000, which is an upper bound of what all four leave. One seed of all arms first, then
the others. Numbers go to records/classifiers.json; those of all finished runs, so that arms may be
trained by several processes at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arms import (
    ARMS,
    BATCH,
    EPS,
    FRACTION,
    IMAGES,
    SEEDS,
    SIGMA,
    STEPS,
    SYNTHETIC,
    WEIGHT,
    attacked,
    named,
    train,
)
from here import Lab, arguments, open_lab

FAST = '{use = "autoattack", version = "fast"}'
NAME = "fast"


def verdicts(folder: Path) -> str:
    """A digit for each image in order: 1 if no attack broke it, for comparisons in pairs."""
    lines = (folder / "examples.jsonl").read_text().splitlines()
    return "".join(str(int(json.loads(line)["eps"][0]["worst"] == "right")) for line in lines)


def seconds(run: Path) -> float:
    """How long a run took."""
    return float(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"])


def finished(lab: Lab) -> dict[str, dict[str, Any]]:
    """Numbers of all runs that have been attacked, by arm and seed."""
    found: dict[str, dict[str, Any]] = {arm: {} for arm in ARMS}
    for arm in ARMS:
        for seed in SEEDS:
            for run in sorted(lab.out.glob(f"[0-9]*-{named(arm, seed)}")):
                report = run / "robust" / NAME / "report.json"
                if report.exists():
                    metrics = lab.measure(run, {})["metrics"]
                    attack = json.loads(report.read_text())
                    kept = {key: attack[key] for key in ("clean", "curve", "stages", "flags")}
                    found[arm][str(seed)] = {
                        "metrics": metrics, "attack": kept, "robust": verdicts(report.parent),
                        "seconds": seconds(run),
                    }  # fmt: skip
    return found


def main() -> None:
    """Train and attack all that is not there yet."""
    parts = {f"{arm}-{seed}": (arm, seed) for seed in SEEDS for arm in ARMS}
    given = arguments(__doc__, tuple(parts), {"base": "plain run without labels"})
    lab = open_lab(given)
    for part in given.parts or parts:
        attacked(lab, given, train(lab, given, *parts[part]), NAME, FAST)
        lab.record(
            "classifiers",
            {
                "runs": finished(lab), "images": IMAGES, "batch": BATCH, "eps": EPS,
                "synthetic": SYNTHETIC, "fraction": FRACTION, "steps": STEPS,
                "sigma": SIGMA, "weight": WEIGHT,
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
