"""First-party plugins keep the laws of their kinds.

A plugin with a `tests/test_laws.py` of its own tries them there, with examples of its own.
"""

from __future__ import annotations

from pathlib import Path

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

EXAMPLES = {
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
    "perturbation:ray-random": [{}, {"unit": "noise", "bias": "random"}],
    "loss_term:equivariance": [
        {},
        {"shift": "literal", "weight_rule": "constant"},
        {"min_sigma": 0.3, "below": "taper"},
    ],
}

test_plugins_keep_the_laws = laws(NAMES, examples=EXAMPLES, witnesses=5)
