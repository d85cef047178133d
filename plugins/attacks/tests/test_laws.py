"""Every attack here keeps the laws of its kind."""

from __future__ import annotations

from advdiff_core.testing import laws

EXAMPLES = {
    "attack:autoattack": [
        {"steps": 3, "targets": 2, "queries": 10},
        {"version": "plus", "steps": 2, "targets": 1, "restarts": 1, "queries": 5},
        {"version": "rand", "steps": 3, "eot": 2},
        {"version": "fast", "steps": 3, "bucket": 2, "interval": 0},
    ],
    "attack:square": [
        {"queries": 20},
        {"queries": 12, "restarts": 2, "rescale": True, "bucket": 2, "interval": 3},
    ],
    "attack:apgd-ce": [{"steps": 8}, {"steps": 6, "restarts": 2, "bucket": 2, "interval": 2, "eot": 2}],
    "attack:apgd-dlr": [{"steps": 8}, {"steps": 5, "restarts": 0, "enlarge": False, "interval": 0}],
    "attack:apgd-t": [{"steps": 4, "targets": 2}, {"steps": 2, "targets": 0, "bucket": 1}],
    "attack:fab": [{"steps": 3}, {"steps": 2, "restarts": 2, "candidates": 2, "settle": True}],
    "attack:fab-t": [
        {"steps": 3, "targets": 2},
        {"steps": 2, "restarts": 2, "targets": 2, "settle": True},
    ],
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
