"""Every component here keeps the laws of its kind."""

from __future__ import annotations

from advdiff_core.testing import laws

SGD = {"use": "sgd", "lr": 0.01}
ATTACKED = {"attack": {"use": "toy-fgsm", "random_start": True}}
HIDDEN = {"tap": "hidden"}
UNET = {"use": "unet", "channels": 8, "channel_mult": [1, 2], "blocks": 1}

EXAMPLES: dict[str, list[object]] = {
    "optimizer:awp": [{"optimizer": SGD}, {"optimizer": SGD, "gamma": 0.01, "after": 64}],
    "alignment_target:diffusion-features": [
        {"tap": "hidden"},
        {"tap": "hidden", "level": "random", "noise": "fixed", "pooling": "none"},
    ],
    "backbone:diffusion-classifier": [
        {
            "denoiser": UNET,
            "tap": "mid.1",
            "outputs": 3,
        },
    ],
    "alignment_target:encoder-features": [{"tap": "hidden"}],
    "alignment_target:latent-diffusion-features": [
        {
            "encoder": UNET,
            "latent": "mid.1",
            "denoiser": {**UNET, "conditional": True},
            "tap": "mid.1",
            "level": "random",
        },
        {
            "encoder": UNET,
            "latent": "mid.1",
            "denoiser": UNET,
            "tap": "mid.1",
            "pooling": "none",
            "noise": "fixed",
            "inputs": "unit",
        },
    ],
    "alignment_target:noisy-classifier-features": [{"tap": "hidden"}],
    "metric:classification-dimension": [{**ATTACKED, "norm": "l2", "head": "probe", **HIDDEN}],
    "metric:cknna": [{"k": 3, "clip": 1.0, "other": HIDDEN, **HIDDEN}],
    "metric:frequency-saliency": [{**ATTACKED, **HIDDEN, "batch": 7}],
    "metric:linear-probe": [{**ATTACKED, **HIDDEN, "eps": [0.0, 0.1], "holdout": 0.5}],
    "metric:noise-head-eot": [{**ATTACKED, **HIDDEN, "samples": 3, "verdicts": 2, "batch": 7}],
    "metric:probe-sweep": [{"sigmas": [0.1, 1.0], "holdout": 0.5, "taps": ["hidden"]}],
    "metric:topk-sae": [{**HIDDEN, "k": [1, 3], "steps": 2, "normalise": "layer"}],
    "metric:uniformity-alignment": [{**ATTACKED, **HIDDEN, "batch": 5}],
    "loss_term:feature-alignment": [{"hidden": 16}, {"hidden": 16, "second": "target-random"}],
}

test_components_keep_the_laws = laws("advdiff-dra", examples=EXAMPLES, witnesses=5)
