"""Experiment 3 on digits: norm and size of the steps, gradient, target, passes, law of the radius.

    python docs/results/atdiff/ablation.py --out RUNS

Diffusion models of digits as in digits.py, one seed, all with the same number of optimizer updates;
twenty minutes of one CPU core in all. Numbers go to records/ablation.json.
"""

from __future__ import annotations

from typing import Any

from digits import DIGITS
from here import Lab, arguments, open_lab
from matched import PASSES, SEEDS, keys_of, measure, train
from measures import RECIPES

PERTURB = "views.adv.perturb"
SEED = SEEDS[0]
ALPHAS = (0.03, 0.1, 0.3, 1.0)
#: A ball that never holds a step back.
WIDE = {f"{PERTURB}.rho": 1.0}


def sized(norm: str, alpha: float) -> dict[str, Any]:
    """Steps of one norm and length."""
    return {f"{PERTURB}.norm": norm, f"{PERTURB}.alpha": alpha, **WIDE}


def grid() -> dict[str, dict[str, Any]]:
    """Norm by length of a step; and the released gradient, by length."""
    norms = {
        f"{norm} {alpha:g}": sized(norm, alpha) for norm in ("l2", "linf", "l1") for alpha in ALPHAS
    }
    frozen = {
        f"frozen {alpha:g}": {**sized("l2", alpha), f"{PERTURB}.ascent": "frozen"}
        for alpha in ALPHAS
    }
    return {**norms, **frozen}


#: What else is open, at one length of a step.
AT = 0.3
OTHERS: dict[str, dict[str, Any]] = {
    # What comes of seeing each batch K times alone.
    "alpha 0": sized("l2", 0.0),
    "target fixed": {**sized("l2", AT), f"{PERTURB}.target": "fixed"},
    "rho 0.02": {**sized("l2", AT), f"{PERTURB}.rho": 0.02},
    "radius neighbours": {**sized("l2", AT), f"{PERTURB}.radius": "neighbours"},
    "K 2": {**sized("l2", AT), "players.student.passes": 2},
    "K 5": {**sized("l2", AT), "players.student.passes": 5},
}


def keys(changes: dict[str, Any]) -> dict[str, Any]:
    """Keys of a run with the number of updates that all have."""
    passes = changes.get("players.student.passes", PASSES)
    images = DIGITS.updates // passes * DIGITS.batch
    warmup = DIGITS.warmup * DIGITS.batch // passes
    told = {
        "run.images": images, "run.checkpoint_every": images,
        "players.student.lr_schedule": {"law": "cosine", "warmup": warmup},
    }  # fmt: skip
    return {**keys_of(DIGITS, "dpm", "free", SEED), **told, **changes}


def pgd() -> dict[str, Any]:
    """As many moves as free training makes, before each of as many updates."""
    plain = keys_of(DIGITS, "dpm", "updates", SEED)
    return {**plain, f"{PERTURB}.steps": PASSES - 1, f"{PERTURB}.alpha": AT, **WIDE}


def measured(lab: Lab, name: str, recipe: str, wanted: dict[str, Any]) -> dict[str, float]:
    """Numbers of a run, trained if it is not there."""
    run = lab.train(f"ablation-{name.replace(' ', '-')}", RECIPES / recipe, wanted)
    return measure(lab, DIGITS, "dpm", run)


def main() -> None:
    """Train and measure all that is not there yet."""
    lab = open_lab(arguments(__doc__))
    plain = train(lab, DIGITS, "dpm", "updates", SEED)
    found = {"plain": measure(lab, DIGITS, "dpm", plain)}
    for name, changes in {**grid(), **OTHERS}.items():
        found[name] = measured(lab, name, "digits-free.toml", keys(changes))
        lab.record("ablation", {"runs": found, "alphas": ALPHAS, "at": AT, "seed": SEED})
    found["pgd"] = measured(lab, "pgd", "digits-pgd.toml", pgd())
    lab.record("ablation", {"runs": found, "alphas": ALPHAS, "at": AT, "seed": SEED})


if __name__ == "__main__":
    main()
