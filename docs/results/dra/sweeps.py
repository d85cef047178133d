"""Weight of the alignment and noise level of the teacher, on real images, one seed.

    python docs/results/dra/sweeps.py --out RUNS --data FOLDER --base RUN

See teachers.py for what the options name, and classifiers.py for what is measured. Nothing is
chosen by these numbers: the arms of classifiers.py keep the defaults. Numbers go to
records/sweeps.json.
"""

from __future__ import annotations

from typing import Any

from arms import SEEDS, SIGMA, WEIGHT, attacked, train
from classifiers import FAST, NAME
from here import arguments, open_lab

WEIGHTS = (0.1, 2.0, 4.0)
SIGMAS = (0.25, 1.0)
ARM = "at-dra"
#: Sigma and weight of each run, the one of the main table first.
POINTS = (
    (SIGMA, WEIGHT), *((SIGMA, weight) for weight in WEIGHTS),
    *((sigma, WEIGHT) for sigma in SIGMAS),
)  # fmt: skip


def main() -> None:
    """Train and attack all that is not there yet."""
    given = arguments(__doc__, (), {"base": "plain run without labels"})
    lab = open_lab(given)
    found: list[dict[str, Any]] = []
    for sigma, weight in POINTS:
        run = train(lab, given, ARM, SEEDS[0], sigma, weight)
        attack = attacked(lab, given, run, NAME, FAST)
        metrics = lab.measure(run, {})["metrics"]
        kept = {"clean": attack["clean"], "curve": attack["curve"]}
        found.append({"sigma": sigma, "weight": weight, "metrics": metrics, "attack": kept})
        lab.record("sweeps", {"runs": found, "seed": SEEDS[0], "arm": ARM})


if __name__ == "__main__":
    main()
