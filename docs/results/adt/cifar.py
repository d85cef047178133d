"""Experiment 2 on CIFAR-10 at 16 pixels: ADT beside plain tuning, at equal updates.

    python docs/results/adt/cifar.py --out RUNS --data FOLDER [--base RUN] [VARIANT ...]

FOLDER holds CIFAR-10 in its binary version, and two imports of classifiers of clean CIFAR-10:
`encoder`, a ResNet-20 whose features the discriminator reads, and `judge`, a ResNet-56 whose pooled
features the distance is measured in. RUN is a plain run of the small U-Net, read as v, on images of
16 pixels; it is trained if left out. Plain tuning and ADT with three seeds, the others with one;
about an hour of one CPU core. Numbers go to records/cifar.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from here import RECORDS, Lab, arguments, open_lab
from measures import RECIPES, TRANSFER, alarm, few_steps, told_by_judge
from pages import record
from variants import VARIANTS, keys_of

SIZE, BASE = 16, 192_000
UPDATES, BATCH, SEEDS = 100, 32, (11, 12, 13)
STEPS, SAMPLES = (10, 25, 50), 500
TRIED = (10,)
RATE = 2e-5
PARTS = ("plain", "adt", "drtune", "plain-fast", "projected")
#: With all seeds; the others with the first one.
MAIN = ("plain", "adt")
NUMBER = "frechet_judge_pooled"
FRECHET: dict[str, Any] = {
    "use": "frechet", "features": "tap", "role": "judge", "tap": "pooled", "images": 10_000,
    "resize": 32,
}  # fmt: skip
U_NET: dict[str, Any] = {
    "use": "unet", "channels": 32, "channel_mult": [1, 2, 2], "blocks": 1, "attention": [8],
    "parametrization": "v", "frozen": True,
}  # fmt: skip


def common(given: Any) -> dict[str, Any]:
    """Keys of every run."""
    return {"data.path": given.data, "data.size": SIZE, "evaluate.metrics": []}


def base(lab: Lab, given: Any) -> Path:
    """The plain run that all go on from."""
    if given.base is not None:
        found: Path = given.base
        return found
    keys = {**common(given), "run.images": BASE}
    return lab.train("cifar16-base", RECIPES / "cifar10-base.toml", keys)


def tuned(lab: Lab, given: Any, variant: str, seed: int) -> Path:
    """A run that goes on from it."""
    keys = {
        **common(given), "players.student.optimizer.lr": RATE,
        **keys_of(variant, updates=UPDATES, batch=BATCH, seed=seed),
        "models.student.init": base(lab, given), "sample.images": 16,
    }  # fmt: skip
    if VARIANTS[variant].judged:
        keys["models.encoder.init"] = given.data / "encoder"
    recipe = RECIPES / f"cifar10-{VARIANTS[variant].recipe}.toml"
    name = variant if seed == SEEDS[0] else f"{variant}-{seed}"
    return lab.train(f"cifar16-{name}", recipe, keys)


def measured(lab: Lab, given: Any, run: Path, *, judged: bool) -> dict[str, float]:
    """Distances by steps and sampler, and what the discriminator says where there is one."""
    net = {
        "use": "cifar-resnet", "depth": 56, "parametrization": "none", "frozen": True,
        "init": given.data / "judge",
    }  # fmt: skip
    others = [name for name in TRANSFER if name != "ddim"]
    metrics = [
        few_steps(FRECHET, ["ddim"], STEPS, clip=True),
        few_steps(FRECHET, others, TRIED, clip=True),
    ]
    models: dict[str, Any] = {"models.judge": net}
    if judged:
        metrics += [*told_by_judge(128), *alarm(FRECHET, 512, NUMBER)]
        models["models.before"] = {**U_NET, "init": base(lab, given)}
    keys = {
        **models, "evaluate.metrics": metrics, "evaluate.num": SAMPLES, "sample.steps": 10,
        "sample.clip_x0": False,
    }  # fmt: skip
    numbers: dict[str, float] = lab.measure(run, keys)["metrics"]
    return numbers


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, PARTS, {"base": "plain run that all go on from"})
    lab = open_lab(given)
    found: dict[str, Any] = (record(RECORDS, "cifar") or {}).get("runs", {})
    told = {"updates": UPDATES, "batch": BATCH, "samples": SAMPLES, "steps": STEPS}
    start = base(lab, given)
    found["base"] = {"": measured(lab, given, start, judged=False)}
    for seed in SEEDS:
        for variant in given.parts or PARTS:
            if variant in MAIN or seed == SEEDS[0]:
                run, judged = tuned(lab, given, variant, seed), VARIANTS[variant].judged
                found.setdefault(variant, {})[str(seed)] = measured(lab, given, run, judged=judged)
                numbers = {"runs": found, "number": NUMBER, "start": start.name, **told}
                lab.record("cifar", numbers)


if __name__ == "__main__":
    main()
