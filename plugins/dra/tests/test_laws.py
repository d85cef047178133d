"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from advdiff_core.testing import laws

SGD = {"use": "sgd", "lr": 0.01}

EXAMPLES: dict[str, list[object]] = {
    "optimizer:awp": [{"optimizer": SGD}, {"optimizer": SGD, "gamma": 0.01, "after": 64}],
    "alignment_target:diffusion-features": [
        {"tap": "hidden"},
        {"tap": "hidden", "level": "random", "noise": "fixed", "pooling": "none"},
    ],
    "alignment_target:encoder-features": [{"tap": "hidden"}],
    "alignment_target:noisy-classifier-features": [{"tap": "hidden"}],
    "loss_term:feature-alignment": [{"hidden": 16}, {"hidden": 16, "second": "target-random"}],
}

test_components_keep_the_laws = laws("advdiff-dra", examples=EXAMPLES, witnesses=5)
