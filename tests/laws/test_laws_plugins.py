"""First-party plugins keep the laws of their kinds.

A plugin with a `tests/test_laws.py` of its own tries them there, with examples of its own.
"""

from __future__ import annotations

from pathlib import Path

from advdiff_core.testing import laws

PLUGINS = Path(__file__).parents[2] / "plugins"
NAMES = [
    f"advdiff-{path.parent.name}"
    for path in sorted(PLUGINS.glob("*/pyproject.toml"))
    if not (path.parent / "tests" / "test_laws.py").exists()
]

EXAMPLES = {
    "perturbation:ray-fgsm": [
        {},
        {"unit": "noise", "bias": "random", "steps": 2},
        {"objective": "equivariance-residual", "bias": "multiplicative", "gamma": 0.0},
    ],
    "perturbation:ray-random": [{}, {"unit": "noise", "bias": "random"}],
    "loss_term:equivariance": [{}, {"shift": "literal", "weight_rule": "constant"}],
}

test_plugins_keep_the_laws = laws(NAMES, examples=EXAMPLES, witnesses=5)
