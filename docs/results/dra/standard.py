"""All four attacks of AutoAttack on one seed of each arm.

    python docs/results/dra/standard.py --out RUNS --data FOLDER --base RUN [ARM ...]

See classifiers.py. Auto-PGD on the cross-entropy, targeted auto-PGD, targeted FAB and Square, with
the settings of the standard version, on the first 1,000 test images. Numbers go to
records/standard.json.
"""

from __future__ import annotations

from arms import ARMS, EPS, SEEDS, attacked, train
from here import RECORDS, arguments, open_lab
from pages import record

STANDARD = '{use = "autoattack"}'


def main() -> None:
    """Attack all that was not attacked yet."""
    given = arguments(__doc__, tuple(ARMS), {"base": "plain run without labels"})
    lab = open_lab(given)
    found = (record(RECORDS, "standard") or {}).get("runs", {})
    for arm in given.parts or ARMS:
        run = train(lab, given, arm, SEEDS[0])
        attack = attacked(lab, given, run, "standard", STANDARD)
        found[arm] = {key: attack[key] for key in ("clean", "curve", "stages", "flags")}
        lab.record("standard", {"runs": found, "seed": SEEDS[0], "eps": EPS})


if __name__ == "__main__":
    main()
