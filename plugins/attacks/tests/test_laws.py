"""Every attack here keeps the laws of its kind."""

from __future__ import annotations

from advdiff_core.testing import laws

EXAMPLES = {
    "attack:fgsm": [
        {},
        {"start": "uniform", "step_scale": 1.25, "keep": "last"},
        {"loss": "margin", "start": "corners", "start_scale": 0.5, "step_scale": 0.5},
        {"loss": "kl", "start": "gaussian", "start_std": 0.01},
    ],
    "attack:pgd": [
        {},
        {"loss": "dlr", "restarts": 2, "steps": 3, "drop_broken": True},
        {"loss": "kl", "start": "gaussian", "step": 0.01, "keep": "last"},
        {"loss": "ce", "start": "corners", "momentum": 1.0, "steps": 4, "sparsity": 0.2},
        {"start": "none", "keep": "last", "drop_broken": True},
    ],
}

test_attacks_keep_the_laws = laws("advdiff-attacks", examples=EXAMPLES, witnesses=5)
