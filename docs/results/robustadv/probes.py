"""Experiment 3 on digits: few steps, memorization, attacks on the path, equivariance error.

    python docs/results/robustadv/probes.py --out RUNS

The runs of sweeps.py that were trained on clean digits, and two that saw 500 of them alone. Numbers
go to records/probes.json.
"""

from __future__ import annotations

from typing import Any

from here import arguments, open_lab
from sweeps import COMMON, METHODS, RECIPES, run_of

QUALITY = {"use": "frechet"}
FEW = {"use": "few-steps", "metric": QUALITY, "steps": [5, 10, 20, 50, 200]}
ATTACK = {
    "use": "trajectory-attack", "metric": QUALITY, "radii": [0.25, 0.5, 1.0, 2.0],
    "counts": [1, 5, 10, 20], "steps": 20, "num": 500,
}  # fmt: skip
PROBES: dict[str, list[dict[str, Any]]] = {
    "few-steps": [FEW],
    "smoothness": [{"use": "smoothness"}],
    "equivariance": [{"use": "equivariance-error"}],
    "trajectory-attack": [ATTACK],
}
SUBSET = {"data.use": "subset", "data.of": {"use": "digits"}, "data.count": 500, "data.corrupt": []}
MEMORY = [{"use": "memorization", "features": "lite", "size": 64}, QUALITY]
NAMES = ("ddpm", "adversarial")


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__)
    lab = open_lab(given)
    found: dict[str, Any] = {}
    for name in NAMES:
        run = run_of(lab, "clean", name)
        for probe, metrics in PROBES.items():
            result = lab.measure(run, {"evaluate.metrics": metrics, "evaluate.num": 1_000})
            found.setdefault(probe, {})[name] = result["metrics"]
            lab.record("probes", found)
    for name in NAMES:
        recipe, keys = METHODS[name]
        keys = {**COMMON, **keys, **SUBSET, "run.images": 64_000}
        run = lab.train(f"digits-memory-{name}", RECIPES / recipe, keys)
        result = lab.measure(run, {"evaluate.metrics": MEMORY, "evaluate.num": 500})
        found.setdefault("memorization", {})[name] = result["metrics"]
        lab.record("probes", found)


if __name__ == "__main__":
    main()
