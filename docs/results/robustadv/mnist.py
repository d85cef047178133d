"""Experiment 2 on MNIST at 14 x 14 pixels: the methods of the paper on damaged and clean data.

    python docs/results/robustadv/mnist.py --out RUNS --data FOLDER

FOLDER holds MNIST's four files. Trained from scratch for equally many images, half an hour of one
CPU core in all. Numbers go to records/mnist.json.
"""

from __future__ import annotations

from typing import Any

from here import arguments, open_lab
from sweeps import COMMON, METHODS, RECIPES

#: Share of the images that are damaged, and standard deviation of the noise in [-1, 1].
LEVELS = {"0.4": (0.9, 0.4), "clean": (0.0, 0.0)}
#: The ablation is run on damaged images alone, and stopped early: it gets worse by the step.
SHORT = {"invariance": 8_000}
IMAGES = 24_000


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__)
    lab = open_lab(given)
    found: dict[str, Any] = {}
    for level, (share, std) in LEVELS.items():
        damage = [{"use": "gaussian", "fraction": share, "std": std}] if std else []
        for name, (recipe, keys) in METHODS.items():
            if name in SHORT and not std:
                continue
            keys = {
                **COMMON, **keys, "run.images": SHORT.get(name, IMAGES), "data.use": "mnist",
                "data.path": given.data, "data.size": 14, "data.corrupt": damage,
                "models.student.attention": [7], "evaluate.num": 1_000,
            }  # fmt: skip
            run = lab.train(f"mnist-{level}-{name}", RECIPES / recipe, keys)
            found.setdefault(level, {})[name] = lab.measure(run, {})["metrics"]
            lab.record("mnist", found)


if __name__ == "__main__":
    main()
