"""What the sweep chose, with all seeds: features of the decoder, and a larger weight.

    python docs/results/dra/chosen.py --out RUNS --data FOLDER --base RUN [SEED ...]

See teachers.py for what the options name. The sweep (sweeps.py) chose on the second thousand of the
test images, and with one seed; here are the first thousand, attacked as in classifiers.py, whose
runs of AT are the other side. Numbers go to records/chosen.json.
"""

from __future__ import annotations

from arms import EPS, SEEDS, Point, attacked, train
from classifiers import FAST, NAME, verdicts
from here import RECORDS, arguments, open_lab
from pages import record

#: The best of the points by robust and by clean accuracy.
CHOSEN = Point(weight=4.0, tap="up.1.0")
ARM = "at-dra"


def main() -> None:
    """Train and attack all that is not there yet."""
    given = arguments(__doc__, tuple(map(str, SEEDS)), {"base": "plain run without labels"})
    lab = open_lab(given)
    for seed in given.parts or map(str, SEEDS):
        run = train(lab, given, ARM, int(seed), CHOSEN)
        attacked(lab, given, run, NAME, FAST)
        found = (record(RECORDS, "chosen") or {}).get("runs", {})
        robust = verdicts(run / "robust" / NAME)
        found[seed] = {"metrics": lab.measure(run, {})["metrics"], "robust": robust}
        lab.record("chosen", {"runs": found, **CHOSEN._asdict(), "arm": ARM, "eps": EPS})


if __name__ == "__main__":
    main()
