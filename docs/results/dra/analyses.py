"""The analyses of the paper on one seed of four classifiers, and of the teachers.

    python docs/results/dra/analyses.py --out RUNS --data FOLDER --base RUN [CLASSIFIER|TEACHER ...]

See teachers.py for what the options name, and docs/dra-analyses.md for the metrics. Numbers go to
records/analyses.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arms import SEEDS, SIGMA, TAP, frozen, noisy, real, train
from here import RECORDS, Lab, arguments, open_lab
from pages import record
from teachers import TEACHERS, teacher

CLASSIFIERS = ("at", "at-dra", "dm", "dm-dra")
NOISY = "noisy"
#: Test images that are scored, and training images that probes and autoencoders are fitted on.
SCORED, FITTED = 1_000, 5_000
PGD = {"use": "pgd", "steps": 10}
EPS = 8 / 255
RADII = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


def of_classifier(lab: Lab, given: Any) -> dict[str, Any]:
    """Keys that measure a classifier, the plain teacher beside it."""
    scored = {"data": real(given, split="test"), "images": SCORED}
    attacked = {**scored, "attack": PGD, "eps": EPS}
    other = {"role": "teacher", "tap": TAP, "sigma": SIGMA}
    metrics = [
        {"use": "uniformity-alignment", **attacked},
        {"use": "cknna", **scored, "other": other},
        {"use": "frequency-saliency", **attacked},
        {"use": "linear-probe", **scored, "head": "probe", "train_images": FITTED, "attack": PGD,
         "eps": RADII},
        {"use": "topk-sae", **scored, "k": [4, 8, 16], "steps": 1_000, "train_images": FITTED},
        {"use": "classification-dimension", **attacked},
    ]  # fmt: skip
    return {"models.teacher": frozen(lab, given, "plain"), "evaluate.metrics": metrics}


def of_teacher(given: Any, name: str) -> dict[str, Any]:
    """Keys that measure a teacher: linear probes under attack, with noise frozen and drawn anew."""
    where = {"tap": "pooled"} if name == NOISY else {"tap": TAP, "sigma": SIGMA}
    scored = {"data": real(given, split="test"), "train_images": FITTED, "head": "probe", **where}
    probe = {"use": "linear-probe", **scored, "images": SCORED, "attack": PGD, "eps": RADII}
    if name == NOISY:
        return {"evaluate.metrics": [probe]}
    head = {
        "use": "noise-head-eot", **scored, "images": 200, "attack": PGD, "eps": RADII[1],
    }  # fmt: skip
    return {"evaluate.metrics": [probe, head], "sample.steps": 1, "evaluate.num": 2}


def measured(lab: Lab, given: Any, name: str) -> dict[str, Any]:
    """Numbers of a classifier or a teacher."""
    run: Path
    if name in CLASSIFIERS:
        return lab.measure(train(lab, given, name, SEEDS[0]), of_classifier(lab, given))
    run = noisy(lab, given) if name == NOISY else teacher(lab, given, name)
    return lab.measure(run, of_teacher(given, name))


def main() -> None:
    """Measure all that is not there yet."""
    parts = (*CLASSIFIERS, *TEACHERS, NOISY)
    given = arguments(__doc__, parts, {"base": "plain run without labels"})
    lab = open_lab(given)
    found = (record(RECORDS, "analyses") or {}).get("models", {})
    for name in given.parts or parts:
        found[name] = measured(lab, given, name)
        lab.record("analyses", {"models": found, "seed": SEEDS[0], "tap": TAP, "sigma": SIGMA})


if __name__ == "__main__":
    main()
