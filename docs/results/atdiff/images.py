"""Experiment 2: CIFAR-10 at 16 pixels, fine-tuning of one plain run by each method.

    python docs/results/atdiff/images.py --out RUNS --data FOLDER [--base RUN] [METHOD ...]

FOLDER holds CIFAR-10 in its binary version, and `judge`, an import of a ResNet-56 trained on clean
CIFAR-10, whose pooled features the distance is measured in. RUN is a plain run of the small U-Net,
read as v, on clean images of 16 pixels with the schedule vp-linear (that of
docs/results/robustadv/images.py, part 16-clean); it is trained if left out. Every method goes on
from it. About an hour of one CPU core. Numbers go to records/images.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from here import RECORDS, Lab, arguments, open_lab
from measures import RECIPES, few_steps, samplers
from pages import record

SIZE = 16
BASE = 192_000
#: Images times updates on each: what all but one method have in common.
UPDATES, PASSES = 64_000, 3
#: Whole batches of 32.
FREE = UPDATES // PASSES // 32 * 32
FREE_KEYS: dict[str, Any] = {"players.student.passes": PASSES}
PERTURB = "views.adv.perturb"


class Method(NamedTuple):
    """How a run goes on: recipe, keys that differ from it, images."""

    recipe: str
    images: int
    keys: dict[str, Any]


INPUT = {
    "views.adv": {"from": "clean", "perturb": {"use": "input-perturbation", "gamma": 0.15}},
    "terms.denoise.view": "adv",
}
#: PGD with as many moves as free training makes, so that both balls are of one size.
TWO = {f"{PERTURB}.steps": PASSES - 1}
METHODS = {
    "plain": Method("cifar10-plain", UPDATES, {}),
    "free": Method("cifar10-free", FREE, FREE_KEYS),
    "free-0.5": Method("cifar10-free", FREE, {**FREE_KEYS, f"{PERTURB}.alpha": 0.5}),
    "input-perturbation": Method("cifar10-plain", UPDATES, INPUT),
    "free-frozen": Method("cifar10-free", FREE, {**FREE_KEYS, f"{PERTURB}.ascent": "frozen"}),
    "plain-batches": Method("cifar10-plain", FREE, {}),
    "pgd": Method("cifar10-pgd", UPDATES, TWO),
}
#: Factors of epsilon scaling that the plain run is tried with, at 10 steps. All get the best one:
#: the published one (1.017) belongs to another network.
SCALES, AT = (1.01, 1.017, 1.03, 1.06, 1.1, 1.15), 10
ANCESTRAL, DETERMINISTIC = (5, 10, 20, 50), (5, 10, 20)
NUMBER = "frechet_judge_pooled"


def frechet(size: int = 32) -> dict[str, Any]:
    """Distance to clean images in the judge's features."""
    return {
        "use": "frechet", "features": "tap", "role": "judge", "tap": "pooled", "images": 10_000,
        "resize": size,
    }  # fmt: skip


def measured(data: Path, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Keys of a measurement; the run's own samples, which are not looked at, are made in a step."""
    judge = {
        "use": "cifar-resnet", "depth": 56, "parametrization": "none", "frozen": True,
        "init": data / "judge",
    }  # fmt: skip
    return {
        "models.judge": judge, "evaluate.metrics": metrics, "evaluate.num": 1_000,
        "sample.steps": 1,
    }  # fmt: skip


def common(given: Any) -> dict[str, Any]:
    """Keys of every run."""
    return {
        "data.path": given.data, "data.size": SIZE, "schedule.use": "vp-linear",
        "sample.steps": 50, "evaluate.metrics": [],
    }  # fmt: skip


def base(lab: Lab, given: Any) -> Path:
    """The plain run that all methods go on from."""
    if given.base is not None:
        found: Path = given.base
        return found
    keys = {**common(given), "run.images": BASE}
    return lab.train("cifar16-base", RECIPES / "cifar10-plain.toml", keys)


def tuned(lab: Lab, given: Any, name: str) -> Path:
    """A run that goes on from it by one method."""
    recipe, images, keys = METHODS[name]
    keys = {
        **common(given), **keys, "run.images": images, "models.student.init": base(lab, given),
    }  # fmt: skip
    return lab.train(f"cifar16-{name}", RECIPES / f"{recipe}.toml", keys)


def scaling(lab: Lab, given: Any) -> dict[str, float]:
    """Distance of the plain run at 10 ancestral steps, by the factor of epsilon scaling."""
    chosen = {f"{scale:g}": samplers(["ddpm"], scale=scale)["ddpm-es"] for scale in SCALES}
    keys = measured(given.data, [few_steps(frechet(), chosen, [AT])])
    numbers = lab.measure(tuned(lab, given, "plain"), keys)["metrics"]
    return {scale: numbers[f"few_steps_{NUMBER}_{scale}_{AT}"] for scale in chosen}


def metrics(scale: float) -> list[dict[str, Any]]:
    """Both samplers, without and with epsilon scaling, and the gap of one of them."""
    return [
        {"use": "distribution-gap", "sampler": samplers(["ddpm"])["ddpm"], "steps": AT},
        few_steps(frechet(), samplers(["ddpm"], scale=scale), ANCESTRAL),
        few_steps(frechet(), samplers(["ddim"], scale=scale), DETERMINISTIC),
    ]


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, tuple(METHODS), {"base": "plain run that all go on from"})
    lab = open_lab(given)
    scales = scaling(lab, given)
    scale = float(min(scales, key=scales.__getitem__))
    start = base(lab, given)
    told = {
        "images": {name: method.images for name, method in METHODS.items()}, "passes": PASSES,
        "base": start.name, "scales": scales, "scale": scale,
    }  # fmt: skip
    found = (record(RECORDS, "images") or {}).get("methods", {})
    for name in [*(given.parts or METHODS), None]:
        run = start if name is None else tuned(lab, given, name)
        found[name or "not tuned"] = lab.measure(run, measured(given.data, metrics(scale)))
        lab.record("images", {"methods": found, **told})


if __name__ == "__main__":
    main()
