"""Experiment 2 on digits: ADT and its parts beside plain tuning, at equal updates of the generator.

    python docs/results/adt/digits.py --out RUNS [VARIANT ...]

8x8 digits in [-1, 1]. All go on from one plain run, with three seeds, but for the rate that was
not taken; about an hour of one CPU core in all. Distances are taken in pixels and in the
features of a classifier of another depth, seed and training than the discriminator's network.
Numbers go to records/digits.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from here import RECORDS, Lab, arguments, open_lab
from measures import RECIPES, TRANSFER, alarm, few_steps, told_by_judge
from pages import record
from variants import ALL, ONCE, VARIANTS, keys_of

SEEDS = (7, 8, 9)
BASE, ENCODER, JUDGE = 64_000, 16_000, 16_000
UPDATES, BATCH = 100, 32
STEPS, SAMPLES = (10, 25, 50), 500
#: Steps of the samplers that runs were not tuned with.
TRIED = (25,)
PIXELS: dict[str, Any] = {"use": "frechet"}
NUMBER = "frechet_judge_pooled"
FEATURES: dict[str, Any] = {"use": "frechet", "features": "tap", "role": "judge", "tap": "pooled"}
#: Rates of this small network; ten times as much is a variant.
RATES: dict[str, Any] = {"players.student.optimizer.lr": 2e-5, "players.student.ema": [0.98]}
#: The judge of the distance is deeper than the discriminator's network.
DEPTH = 14
U_NET: dict[str, Any] = {
    "use": "unet", "channels": 32, "channel_mult": [1, 2], "blocks": 1, "attention": [4],
    "parametrization": "v", "frozen": True,
}  # fmt: skip


def classifier(lab: Lab, name: str = "encoder", seed: int = 7, depth: int = 8) -> Path:
    """A classifier of digits."""
    keys = {
        "run.seed": seed, "run.images": ENCODER if name == "encoder" else JUDGE,
        "models.encoder.depth": depth,
    }  # fmt: skip
    return lab.train(f"digits-{name}", RECIPES / "digits-encoder.toml", keys)


def base(lab: Lab) -> Path:
    """The plain run that all go on from."""
    keys = {"run.images": BASE, "evaluate.metrics": [], "sample.images": 16}
    return lab.train("digits-base", RECIPES / "digits-base.toml", keys)


def tuned(
    lab: Lab, variant: str, seed: int, more: Mapping[str, Any] | None = None, name: str = ""
) -> Path:
    """A run that goes on from it; `more` are further keys, of a run by another `name`."""
    keys = {
        **RATES, **keys_of(variant, updates=UPDATES, batch=BATCH, seed=seed),
        "models.student.init": base(lab), "evaluate.metrics": [], "sample.images": 16,
        **(more or {}),
    }  # fmt: skip
    if VARIANTS[variant].judged and "models.encoder" not in keys:
        keys["models.encoder.init"] = classifier(lab)
    recipe = RECIPES / f"digits-{VARIANTS[variant].recipe}.toml"
    return lab.train(f"digits-{name or f'{variant}-{seed}'}", recipe, keys)


def measured(lab: Lab, run: Path, *, judged: bool) -> dict[str, float]:
    """Distances by steps and sampler, and what the discriminator says where there is one."""
    net = {
        "use": "cifar-resnet", "depth": DEPTH, "mean": [0.5], "std": [0.5], "frozen": True,
        "parametrization": "none", "init": classifier(lab, "judge", 99, DEPTH),
    }  # fmt: skip
    others = [name for name in TRANSFER if name != "ddim"]
    metrics = [
        few_steps(of, names, steps, clip=False)
        for of in (PIXELS, FEATURES)
        for names, steps in ((["ddim"], STEPS), (others, TRIED))
    ]
    models: dict[str, Any] = {"models.judge": net}
    if judged:
        metrics += [*told_by_judge(256), *alarm(FEATURES, SAMPLES, NUMBER)]
        models["models.before"] = {**U_NET, "init": base(lab)}
    keys = {
        **models, "evaluate.metrics": metrics, "evaluate.num": SAMPLES, "sample.steps": 1,
    }  # fmt: skip
    numbers: dict[str, float] = lab.measure(run, keys)["metrics"]
    return numbers


def cells(chosen: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Seed and variant of every run, a whole seed after the other."""
    for seed in SEEDS:
        for variant in chosen:
            if variant not in ONCE or seed == SEEDS[0]:
                yield seed, variant


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, ALL)
    lab = open_lab(given)
    found: dict[str, Any] = (record(RECORDS, "digits") or {}).get("runs", {})
    found["base"] = {"": measured(lab, base(lab), judged=False)}
    told = {"updates": UPDATES, "batch": BATCH, "base": BASE, "samples": SAMPLES, "steps": STEPS}
    for seed, variant in cells(tuple(given.parts) or ALL):
        run = tuned(lab, variant, seed)
        numbers = measured(lab, run, judged=VARIANTS[variant].judged)
        found.setdefault(variant, {})[str(seed)] = numbers
        lab.record("digits", {"runs": found, "number": NUMBER, **told})


if __name__ == "__main__":
    main()
