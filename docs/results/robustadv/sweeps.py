"""Experiments 2 and 4 on digits: every method at three levels of damage, and which lambda to use.

    python docs/results/robustadv/sweeps.py --out RUNS

8x8 digits in [-1, 1], 90 % damaged by noise, half an hour of one CPU core in all. The price on
clean data is measured by the same methods on clean digits. Numbers go to records/digits.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from here import Lab, arguments, open_lab

RECIPES = Path(__file__).parents[3] / "plugins/robustadv/src/advdiff_robustadv/recipes"
#: Share of the digits that are damaged, and standard deviation of the noise.
LEVELS = {"0.4": (0.9, 0.4), "0.2": (0.9, 0.2), "all": (1.0, 0.4), "clean": (0.0, 0.0)}
COMMON = {
    "run.images": 24_000, "run.batch": 32, "run.checkpoint_every": 24_000,
    "players.student.lr_schedule": {"law": "cosine", "warmup": 3_200},
    "players.student.ema": [0.99], "sample.clip_x0": True,
}  # fmt: skip
LAMBDA, RULE = "terms.equivariance.weight", "terms.equivariance"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("digits-plain.toml", {}),
    "random": ("digits.toml", {"views.adv.perturb.use": "ray-random"}),
    "adversarial": ("digits.toml", {}),
    "invariance": ("digits.toml", {f"{RULE}.use": "invariance"}),
}
#: The lambda sweep, and what else was tried; at the strongest damage and on clean digits.
TRIED: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"lambda {x}": ("digits.toml", {LAMBDA: x}) for x in (0.1, 1.0, 3.0)},
    "omega 1.0": ("digits.toml", {"views.adv.perturb.omega": 1.0}),
    "learned ray": ("digits-learned.toml", {}),
    "last third": ("digits.toml", {f"{RULE}.after": 16_000}),
    "noise units": ("digits.toml", {"views.adv.perturb.unit": "noise"}),
}


def run_of(lab: Lab, level: str, name: str) -> Path:
    """A run, trained if it is not there."""
    recipe, keys = {**METHODS, **TRIED}[name]
    share, std = LEVELS[level]
    damage = [{"use": "gaussian", "fraction": share, "std": std}] if std else []
    keys = {**COMMON, **keys, "data.corrupt": damage}
    return lab.train(f"digits-{level}-{name.replace(' ', '-')}", RECIPES / recipe, keys)


def main() -> None:
    """Train and measure all that is not there yet."""
    given = arguments(__doc__)
    lab = open_lab(given)
    plan = [(level, name) for level in ("0.4", "clean") for name in METHODS]
    plan += [(level, name) for level in ("0.2", "all") for name in ("ddpm", "adversarial")]
    plan += [(level, name) for name in TRIED for level in ("0.4", "clean")]
    found: dict[str, Any] = {}
    for level, name in plan:
        metrics = lab.measure(run_of(lab, level, name), {})["metrics"]
        found.setdefault(level, {})[name] = metrics
        lab.record("digits", found)


if __name__ == "__main__":
    main()
