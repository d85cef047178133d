"""Experiment 2: CIFAR-10, 90 % damaged by noise; plain, random, adversarial, invariance.

    python docs/results/robustadv/images.py --out RUNS --data FOLDER [PART ...]

FOLDER holds CIFAR-10 in its binary version, and `judge`, an import of a ResNet-56 trained on clean
CIFAR-10, whose pooled features the distance is measured in. Every method goes on from the same
plain run for the same number of images (the paper's fine-tuning form). Numbers go to
records/images-*.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from here import Lab, arguments, open_lab

RECIPES = Path(__file__).parents[3] / "plugins/robustadv/src/advdiff_robustadv/recipes"
#: Height and width of the images, and standard deviation of the noise on 90 % of them. The page has
#: those that there are records of.
PARTS = {"32-0.2": (32, 0.2), "16-0.2": (16, 0.2), "16-0.1": (16, 0.1), "16-clean": (16, 0.0)}
#: Images of the plain run, and of what goes on from it.
LENGTHS = {
    "32-0.2": (128_000, 32_000), "16-0.2": (192_000, 64_000), "16-0.1": (96_000, 32_000),
    "16-clean": (192_000, 64_000),
}  # fmt: skip
#: The ablation is stopped early: it gets worse by the step.
SHORT = {"invariance": 8_000}
#: All methods at 16 pixels and the noise of the paper's headline; a pair beside it.
GRID, PAIR = "16-0.2", ("ddpm", "adversarial")
INVARIANCE = {"terms.equivariance.use": "invariance"}
#: Read as v: as eps, after so few images, DDIM first leaves samples of the plain model that are
#: noise alone, which would flatter everything compared with it.
READ = {"models.student.parametrization": "v"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("cifar10-plain.toml", {}),
    "adversarial": ("cifar10-corrupted.toml", {}),
    "random": ("cifar10-corrupted.toml", {"views.adv.perturb.use": "ray-random"}),
    "invariance": ("cifar10-corrupted.toml", INVARIANCE),
}
#: What else was tried where all methods are: the open choices of the loss.
LOSS = "terms.equivariance"
TRIED: dict[str, tuple[str, dict[str, Any]]] = {
    "lambda 1.0": ("cifar10-corrupted.toml", {f"{LOSS}.weight": 1.0}),
    "uncapped": ("cifar10-corrupted.toml", {f"{LOSS}.w_max": 0.0}),
}


def distance(data: Path, size: int) -> dict[str, Any]:
    """Keys that measure the distance to clean images in the judge's features."""
    judge = {
        "use": "cifar-resnet", "depth": 56, "parametrization": "none", "frozen": True,
        "init": data / "judge",
    }  # fmt: skip
    frechet = {
        "use": "frechet", "features": "tap", "role": "judge", "tap": "pooled", "images": 10_000,
    }  # fmt: skip
    if size != 32:
        frechet["resize"] = 32
    metrics = [frechet, {"use": "residual-noise"}]
    return {"models.judge": judge, "evaluate.metrics": metrics, "evaluate.num": 1_000}


def common(given: Any, part: str) -> dict[str, Any]:
    """Keys of every run of a part."""
    size, std = PARTS[part]
    damage = [{"use": "gaussian", "fraction": 0.9, "std": std}] if std else []
    keys = {**READ, "data.path": given.data, "data.corrupt": damage, "evaluate.metrics": []}
    return keys if size == 32 else {**keys, "data.size": size}


def base(lab: Lab, given: Any, part: str) -> Path:
    """The plain run that all methods go on from."""
    keys = {**common(given, part), "run.images": LENGTHS[part][0]}
    return lab.train(f"cifar{part}-base", RECIPES / "cifar10-plain.toml", keys)


def tuned(lab: Lab, given: Any, part: str, method: str) -> Path:
    """A run that goes on from it by one method."""
    recipe, keys = {**METHODS, **TRIED}[method]
    keys = {
        **common(given, part), **keys, "run.images": SHORT.get(method, LENGTHS[part][1]),
        "models.student.init": base(lab, given, part),
    }  # fmt: skip
    return lab.train(f"cifar{part}-{method.replace(' ', '-')}", RECIPES / recipe, keys)


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__, tuple(PARTS))
    lab = open_lab(given)
    for part in given.parts or PARTS:
        found: dict[str, Any] = {}
        for method in (*METHODS, *TRIED) if part == GRID else PAIR:
            run = tuned(lab, given, part, method)
            found[method] = lab.measure(run, distance(given.data, PARTS[part][0]))
            base_images, tuned_images = LENGTHS[part]
            counts = {"base": base_images, "tuned": tuned_images, "short": SHORT}
            lab.record(f"images-{part}", {"methods": found, **counts})


if __name__ == "__main__":
    main()
