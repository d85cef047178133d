"""The core's own components keep the laws of their kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advdiff_core.testing import Example, laws
from advdiff_core.types import DataInfo, Domain

SEED = 0


def tensor_file(folder: Path) -> dict[str, Any]:
    """Twelve small pictures of three classes in one file."""
    pixels = np.random.default_rng(SEED).integers(0, 255, (12, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(12) % 3)
    return {"path": str(folder / "data.npz"), "images": "x", "labels": "y"}


def image_folder(folder: Path) -> dict[str, Any]:
    """Three pictures of each of two classes."""
    draws = np.random.default_rng(SEED)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for number in range(3):
            pixels = draws.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return {"path": str(folder), "labels": "folders"}


POINTS = DataInfo(shape=(2,), count=64, classes=3)
IMAGES = DataInfo(shape=(1, 12, 12), count=64, domain=Domain(-1.0, 1.0), classes=3)
NO_NOISE = {"residual_noise": 0.0, "residual_noise_data": 0.0}
PLANE = {"plane_std_ratio": 1.0}
TAP = {"features": "tap", "role": "student", "tap": "hidden"}

EXAMPLES = {
    "backbone:mlp": [
        {"width": 16},
        {
            "width": 16, "fourier": 2, "conditional": True, "dropout": 0.1, "label_dropout": 0.1,
            "guided": True,
        },
        {"width": 16, "outputs": 5},
        {"width": 16, "learn_sigma": True},
    ],
    "backbone:unet": [
        {"channels": 8, "learn_sigma": True},
        Example(
            settings={
                "channels": 8, "channel_mult": [1, 2], "attention": [6], "head_channels": 4,
                "conditional": True, "dropout": 0.1, "label_dropout": 0.1, "blocks": 1,
                "guided": True,
            },
            data=IMAGES,
        ),
    ],
    "corruption:gaussian": [
        {"std": 0.4},
        Example(settings={"std": 0.4, "direction": [1.0, -2.0]}, data=POINTS),
    ],
    "dataset:image-folder": [image_folder],
    "dataset:tensor-file": [tensor_file],
    "loss_term:denoise": [{}, {"space": "v", "weighting": "min-snr"}, {"weighting": "p2"}],
    "metric:frechet": [
        Example(best={"frechet": 0.0, "frechet_data": 0.0}, symmetric=("frechet",)),
        Example(settings={**TAP, "against": "data"}, best={"frechet_to_data_student_hidden": 0.0}),
    ],
    "metric:plane-distance": [Example(best=PLANE), Example(settings={"normal": [1.0, 2.0]})],
    "metric:residual-noise": [Example(best=NO_NOISE), {"estimator": "mad"}],
    "metric:sliced-wasserstein": [
        Example(best={"sliced_wasserstein": 0.0}, symmetric=("sliced_wasserstein",))
    ],
    "noise_schedule:vp-cosine": [{}, {"num_steps": 0}],
    "noise_schedule:vp-linear": [{}, {"num_steps": 0}, {"num_steps": 7}, {"root": True}],
    "optimizer:torch:Muon": [{}],
    "optimizer:torch:NAdam": [{}],
    "perturbation:attack": [
        {"attack": {"use": "unregistered:bench-attack"}},
        {"attack": {"use": "unregistered:bench-attack"}, "unit": "noise", "follows": False},
    ],
    "sampler:ddim": [Example(order=1), {"eta": 1.0}, {"clip_x0": True}],
    "sampler:ddpm": [{}, {"variance": "fixed-small"}],
    "sampler:dpm++2m": [Example(order=2)],
    "sampler:euler": [Example(order=1), {"churn": 5.0}],
    "sampler:heun": [Example(order=2), {"churn": 5.0}],
}  # fmt: skip

CLIPS = "clips the tails of the Gaussian whose exact solution is known"
EXPECTED = {
    "sampler:ddim#3/converges": CLIPS,
    "sampler:ddim#3/keeps-the-distribution": CLIPS,
}

test_core_keeps_the_laws = laws(
    "advdiff-core", examples=EXAMPLES, expected_failures=EXPECTED, witnesses=5
)
