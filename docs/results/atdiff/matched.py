"""Plain and free adversarial training on small data, matched in updates and in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from here import Lab
from measures import RECIPES, few_steps, samplers

__all__ = [
    "KINDS",
    "PASSES",
    "SEEDS",
    "STEPS",
    "VARIANTS",
    "Setup",
    "keys_of",
    "measure",
    "run_all",
    "train",
]

SEEDS = (7, 8, 9)
PASSES = 3
#: Diffusion, consistency training and consistency distillation: recipes without and with AT.
KINDS = {"dpm": ("plain", "free"), "ct": ("ct", "ct-free"), "cd": ("cd", "cd-free")}
#: With as many optimizer updates as free training, with as many batches, and free training.
VARIANTS = ("updates", "batches", "free")
STEPS = {"dpm": (5, 10, 20, 50), "ct": (1, 2, 4), "cd": (1, 2, 4)}


class Setup(NamedTuple):
    """A data set.

    Attributes:
        name: Its name in recipes and records.
        batch: Samples per batch.
        updates: Optimizer updates of free training, and of what is matched to it in these.
        warmup: Updates until the learning rate of diffusion models is reached.
        metric: What samples are judged by.
        number: Its number.
        num: Samples that are judged.
        clip: Whether samplers clip x0.
    """

    name: str
    batch: int
    updates: int
    warmup: int
    metric: Mapping[str, Any]
    number: str
    num: int
    clip: bool

    def images(self, variant: str) -> int:
        """Images of a run."""
        passes = 1 if variant == "updates" else PASSES
        return self.updates // passes * self.batch


def keys_of(setup: Setup, kind: str, variant: str, seed: int) -> dict[str, Any]:
    """What differs from the recipe: sizes for minutes, and the seed."""
    passes = PASSES if variant == "free" else 1
    images = setup.images(variant)
    keys: dict[str, Any] = {
        "run.seed": seed, "run.images": images, "run.batch": setup.batch,
        "run.checkpoint_every": images, "players.student.ema": [0.99], "evaluate.metrics": [],
    }  # fmt: skip
    if kind in ("dpm", "edm"):
        warmup = setup.warmup * setup.batch // passes
        keys["players.student.lr_schedule"] = {"law": "cosine", "warmup": warmup}
    return keys


def train(lab: Lab, setup: Setup, kind: str, variant: str, seed: int) -> Path:
    """A run, trained if it is not there; a distilled one with its teacher."""
    keys = keys_of(setup, kind, variant, seed)
    if kind == "cd":
        teacher = train(lab, setup, "edm", "updates", seed)
        keys |= {"models.teacher.init": teacher, "models.student.init": teacher}
    recipe = "edm" if kind == "edm" else KINDS[kind][variant == "free"]
    name = f"{setup.name}-{kind}-{variant}-{seed}"
    return lab.train(name, RECIPES / f"{setup.name}-{recipe}.toml", keys)


def measure(lab: Lab, setup: Setup, kind: str, run: Path) -> dict[str, float]:
    """Distance against network evaluations."""
    if kind == "dpm":
        found = few_steps(setup.metric, samplers(["ddpm", "ddim"], clip=setup.clip), STEPS[kind])
    else:
        found = {"use": "few-steps", "metric": dict(setup.metric), "steps": list(STEPS[kind])}
    keys = {"evaluate.metrics": [found], "evaluate.num": setup.num, "sample.steps": 1}
    numbers: dict[str, float] = lab.measure(run, keys)["metrics"]
    return numbers


def cells() -> Iterator[tuple[int, str, str]]:
    """Seed, kind and variant of every run, a whole seed after the other."""
    for seed in SEEDS:
        for kind in KINDS:
            for variant in VARIANTS:
                yield seed, kind, variant


def run_all(lab: Lab, setup: Setup) -> None:
    """Train and measure all that is not there yet; numbers go to records/<name>.json."""
    found: dict[str, Any] = {}
    for seed, kind, variant in cells():
        run = train(lab, setup, kind, variant, seed)
        one = found.setdefault(kind, {}).setdefault(variant, {})
        one[str(seed)] = measure(lab, setup, kind, run)
        sizes = {name: setup.images(name) for name in VARIANTS}
        told = {"images": sizes, "batch": setup.batch, "updates": setup.updates}
        lab.record(setup.name, {"runs": found, "number": setup.number, "num": setup.num, **told})
