"""First-party plugins keep the laws of their kinds.

A plugin with a `tests/test_laws.py` of its own tries them there, with examples of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from advdiff_robustadv.heads import RayHead
from advdiff_robustadv.learned import RayLearned

from advdiff_core.testing import Example, Model, Moved, laws

PLUGINS = Path(__file__).parents[2] / "plugins"
NAMES = [
    f"advdiff-{path.parent.name}"
    for path in sorted(PLUGINS.glob("*/pyproject.toml"))
    if not (path.parent / "tests" / "test_laws.py").exists()
]

RAY = {"ray": Model(RayHead, parametrization="none")}
LEARNED = {"adv": Moved("clean", RayLearned)}


def projected(folder: Path) -> dict[str, Any]:
    """Twelve small pictures, projected to three dimensions."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(12) % 3)
    images = {"use": "tensor-file", "path": str(folder / "data.npz"), "images": "x", "labels": "y"}
    return {"images": images, "components": 3}


SPAN = {"subspace_recovery": 1.0, "subspace_angle": 0.0, "subspace_std_ratio": 1.0}
QUALITY = {"metric": {"use": "frechet"}}

EXAMPLES = {
    "dataset:linearized-images": [
        projected,
        {"images": {"use": "oblique-plane", "count": 40}, "components": 2, "fit": "widen"},
    ],
    "sampler:attacked": [
        {"sampler": {"use": "heun"}, "radius": 0.0},
        {"sampler": {"use": "ddim"}, "radius": 0.2, "attacked": 1, "attack_steps": 2},
        {
            "sampler": {"use": "ddpm"},
            "radius": 0.1,
            "law": "fixed",
            "attacked": 1,
            "norm": "l2",
            "kind": "gaussian",
        },
    ],
    "metric:subspace": [Example(settings={"components": 2}, best=SPAN)],
    "metric:smoothness": [{}, {"sampler": {"use": "heun"}, "steps": 3, "num": 10}],
    "metric:equivariance-error": [
        {"steps": 2, "levels": [0.2, 0.8]},
        {"steps": 1, "levels": [0.5], "norm": "l2", "law": "fixed", "unit": "noise", "batch": 5},
    ],
    "metric:trajectory-attack": [
        {**QUALITY, "radii": [0.5], "attack_steps": 1},
        {**QUALITY, "radii": [], "counts": [1, 2], "kind": "random", "steps": 2},
    ],
    "perturbation:gaussian-smoothing": [{}, {"std": 0.1, "unit": "noise", "target": "stays"}],
    "perturbation:ray-learned": [
        Example(models=RAY),
        Example(settings={"unit": "noise", "gamma_min": 0.0, "gamma_max": 0.1}, models=RAY),
    ],
    "loss_term:ray-gain": [
        Example(models=RAY, views=LEARNED),
        Example(
            settings={"goal": "minimise", "objective": "prediction-gap", "pull": 0.0},
            models=RAY,
            views=LEARNED,
        ),
    ],
    "perturbation:ray-fgsm": [
        {},
        {"unit": "noise", "bias": "random", "steps": 2},
        {"objective": "equivariance-residual", "bias": "multiplicative", "gamma": 0.0},
    ],
    "perturbation:ray-random": [{}, {"unit": "noise", "bias": "random"}, {"relative": True}],
    "loss_term:equivariance": [
        {},
        {"shift": "literal", "weight_rule": "constant"},
        {"min_sigma": 0.3, "below": "taper"},
    ],
}

test_plugins_keep_the_laws = laws(NAMES, examples=EXAMPLES, witnesses=5)
