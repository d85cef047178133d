"""At which place and noise level the teachers read best: the sweep of linear probes.

    python docs/results/dra/probes.py --out RUNS --data FOLDER --base RUN [TEACHER ...]

See teachers.py for what the options name. Probes are fitted and chosen on training images; the
chosen pair is scored on test images. The classifier of noised images is probed where it is read.
Numbers go to records/probes.json.
"""

from __future__ import annotations

from typing import Any

from arms import SIGMA, noisy, real
from here import RECORDS, arguments, open_lab
from pages import record
from teachers import TEACHERS, teacher

SIGMAS = (0.03, 0.06, 0.12, 0.25, 0.5)
TAPS = ("down.2.0", "mid.1", "up.2.0", "up.1.0")
IMAGES = 4_000
NOISY = "noisy"


def sweep(given: Any) -> dict[str, Any]:
    """Keys that measure the sweep."""
    metric = {
        "use": "probe-sweep", "role": "student", "taps": TAPS, "sigmas": SIGMAS,
        "train_images": IMAGES, "data": real(given, split="test"), "images": 2_000,
    }  # fmt: skip
    return {"evaluate.metrics": [metric], "sample.steps": 1, "evaluate.num": 2}


def main() -> None:
    """Measure all that is not there yet."""
    parts = (*TEACHERS, NOISY)
    given = arguments(__doc__, parts, {"base": "plain run without labels"})
    lab = open_lab(given)
    found = (record(RECORDS, "probes") or {}).get("teachers", {})
    for name in given.parts or parts:
        if name == NOISY:
            found[name] = lab.measure(noisy(lab, given), {})
        else:
            found[name] = lab.measure(teacher(lab, given, name), sweep(given))
        lab.record("probes", {"teachers": found, "sigma": SIGMA, "taps": TAPS, "sigmas": SIGMAS})


if __name__ == "__main__":
    main()
