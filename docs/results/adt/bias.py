"""Experiment 3a: the bias of the stop of the gradient, along training.

    python docs/results/adt/bias.py --out RUNS

Angle between the gradients of `adt`, and of `drtune`, and the whole one, towards the weights of the
U-Net of digits, by the discriminator's score, at checkpoints of one run of ADT (digits.py), with
all steps of 10 and of 25 trained. A few minutes of one CPU core. Numbers go to records/bias.json.
"""

from __future__ import annotations

from typing import Any

from digits import BATCH, SEEDS, UPDATES, tuned
from here import arguments, open_lab
from variants import EVERY

#: Checkpoints after these shares of the run.
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
STEPS = (10, 25)


def main() -> None:
    """Train and measure all that is not there yet."""
    lab = open_lab(arguments(__doc__))
    images = UPDATES * EVERY * BATCH
    each = int(images * SHARES[0])
    more = {"run.checkpoint_every": each, "run.keep": len(SHARES) + 1}
    run = tuned(lab, "adt", SEEDS[0], more, "bias")
    found: dict[str, Any] = {}
    for number, share in enumerate(SHARES, 1):
        for steps in STEPS:
            one = {
                "use": "rollout-gradients", "judge": "discriminator", "steps": steps, "num": 64,
                "batch": 32, "sampler": {"use": "ddim"},
            }  # fmt: skip
            keys = {"evaluate.metrics": [one], "evaluate.num": 2, "sample.steps": 1}
            numbers = lab.measure(run, keys, checkpoint=number * each)["metrics"]
            found.setdefault(str(steps), {})[f"{share:g}"] = numbers
        lab.record("bias", {"runs": found, "images": images})


if __name__ == "__main__":
    main()
