"""Weight of the alignment and noise level of the teacher, on real images, one seed.

    python docs/results/dra/sweeps.py --out RUNS --data FOLDER --base RUN

See teachers.py for what the options name. The best pair is what the other scripts train with
(arms.py): it is chosen by 20 steps of PGD on the second thousand of the test images, which no
attack of the tables sees. Numbers go to records/sweeps.json.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from arms import ATTACKED, EPS, SEEDS, attacked, train
from classifiers import verdicts
from here import arguments, open_lab

PGD = '{use = "pgd", steps = 20}'
#: Sigma and weight of each run.
POINTS = ((0.06, 0.5), (0.06, 4.0), (0.25, 0.5), (1.0, 0.5), (0.06, 16.0))
PLAIN, ARM = "at", "at-dra"
IMAGES = (ATTACKED, 2 * ATTACKED)


def main() -> None:
    """Train and attack all that is not there yet."""
    given = arguments(__doc__, (), {"base": "plain run without labels"})
    lab = open_lab(given)
    found: list[dict[str, Any]] = []
    for point in (None, *POINTS):
        run = (
            train(lab, given, ARM, SEEDS[0], *point)
            if point
            else train(lab, given, PLAIN, SEEDS[0])
        )
        attacked(lab, given, run, "choice", PGD, num=IMAGES[1])
        robust = fmean(map(int, verdicts(run / "robust" / "choice")[slice(*IMAGES)]))
        metrics = lab.measure(run, {})["metrics"]
        told = dict(zip(("sigma", "weight"), point or (None, None), strict=True))
        found.append({**told, "metrics": metrics, "robust": robust})
        lab.record(
            "sweeps", {"runs": found, "seed": SEEDS[0], "arm": ARM, "images": IMAGES, "eps": EPS}
        )


if __name__ == "__main__":
    main()
