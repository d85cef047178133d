"""Experiment 4 on digits: the distribution gap itself, and noise in the path of sampling.

    python docs/results/atdiff/robustness.py --out RUNS

The diffusion models of digits.py, plain and with free AT, three seeds; a few minutes of one CPU
core once they are there. Numbers go to records/robustness.json.
"""

from __future__ import annotations

from typing import Any

from digits import DIGITS
from here import arguments, open_lab
from matched import SEEDS, VARIANTS, train
from measures import samplers

STEPS = (10, 50)
LEVELS = (0.05, 0.1, 0.2, 0.4)
#: Shares of the path at which noise is injected once, for the first seed.
PLACES = (0.25, 0.5, 0.75)
PATH = {"sampler": samplers(["ddim"])["ddim"]}


def gap(steps: int) -> list[dict[str, Any]]:
    """The gap along the path of so many steps."""
    return [{"use": "distribution-gap", **PATH, "steps": steps}]


def noise(seed: int) -> list[dict[str, Any]]:
    """Distance under noise; at single steps for the first seed alone."""
    found = {
        "use": "noise-robustness", "metric": dict(DIGITS.metric), **PATH, "steps": 20,
        "levels": list(LEVELS), "places": list(PLACES) if seed == SEEDS[0] else [],
    }  # fmt: skip
    return [found]


def main() -> None:
    """Train and measure all that is not there yet."""
    lab = open_lab(arguments(__doc__))
    found: dict[str, Any] = {}
    for seed in SEEDS:
        for variant in VARIANTS:
            run = train(lab, DIGITS, "dpm", variant, seed)
            wanted = {**{f"gap {steps}": gap(steps) for steps in STEPS}, "noise": noise(seed)}
            for name, metrics in wanted.items():
                keys = {
                    "evaluate.metrics": metrics, "evaluate.num": DIGITS.num, "sample.steps": 1,
                }  # fmt: skip
                numbers = lab.measure(run, keys)["metrics"]
                found.setdefault(name, {}).setdefault(variant, {})[str(seed)] = numbers
            lab.record("robustness", {"runs": found, "levels": LEVELS, "places": PLACES})


if __name__ == "__main__":
    main()
