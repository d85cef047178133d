"""Weight of the alignment, noise level and place of the teacher, on real images, one seed.

    python docs/results/dra/sweeps.py --out RUNS --data FOLDER --base RUN

See teachers.py for what the options name. Told by 20 steps of PGD on the second thousand of the
test images, which no attack of the tables sees: what the other scripts train with (arms.py) is the
best of the weights that were tried. Numbers go to records/sweeps.json.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from arms import ATTACKED, EPS, SEEDS, Point, attacked, train
from classifiers import verdicts
from here import arguments, open_lab

PGD = '{use = "pgd", steps = 20}'
POINTS = (
    Point(), Point(weight=4.0), Point(sigma=0.25), Point(weight=4.0, tap="up.1.0"),
    Point(sigma=1.0), Point(weight=16.0),
)  # fmt: skip
PLAIN, ARM = "at", "at-dra"
IMAGES = (ATTACKED, 2 * ATTACKED)


def main() -> None:
    """Train and attack all that is not there yet."""
    given = arguments(__doc__, (), {"base": "plain run without labels"})
    lab = open_lab(given)
    found: list[dict[str, Any]] = []
    for point in (None, *POINTS):
        arm = ARM if point else PLAIN
        run = train(lab, given, arm, SEEDS[0], point or Point())
        attacked(lab, given, run, "choice", PGD, num=IMAGES[1])
        robust = fmean(map(int, verdicts(run / "robust" / "choice")[slice(*IMAGES)]))
        metrics = lab.measure(run, {})["metrics"]
        told = point._asdict() if point else dict.fromkeys(Point._fields)
        found.append({**told, "metrics": metrics, "robust": robust})
        lab.record(
            "sweeps", {"runs": found, "seed": SEEDS[0], "arm": ARM, "images": IMAGES, "eps": EPS}
        )


if __name__ == "__main__":
    main()
