"""The networks of this plugin keep the laws of backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from advdiff_core.testing import Example, laws
from advdiff_core.types import DataInfo, Domain

IMAGES = DataInfo(shape=(3, 16, 8), count=64, domain=Domain(-1.0, 1.0), classes=3)
DIGITS = DataInfo(shape=(1, 28, 28), count=64, domain=Domain(0.0, 1.0), classes=10)
SMALL_DIGITS = DataInfo(shape=(1, 16, 16), count=64, domain=Domain(-1.0, 1.0), classes=3)
ODD = DataInfo(shape=(3, 9, 15), count=64, domain=Domain(-1.0, 1.0), classes=3)
LATENTS = DataInfo(shape=(4, 8, 8), count=64, classes=3)

UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
TEXT_UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 12,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
DIFFUSERS_DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
SD3 = {
    "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 12,
    "caption_projection_dim": 16, "pooled_projection_dim": 20, "pos_embed_max_size": 8,
}  # fmt: skip

VAE = {
    "block_out_channels": [4, 8], "norm_num_groups": 2, "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
}  # fmt: skip

ADM = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4], "head_channels": 4}
DDPMPP = {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention": [4]}
DIT = {"width": 16, "depth": 2, "heads": 2}
LABELS = {"conditional": True, "dropout": 0.1, "label_dropout": 0.1}


def latents(folder: Path) -> dict[str, Any]:
    """Twelve pictures of three classes, and a tiny autoencoder of random weights."""
    pixels = np.random.default_rng(0).integers(0, 255, (12, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(12) % 3)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    images = {"use": "tensor-file", "path": str(folder / "data.npz"), "images": "x", "labels": "y"}
    return {"images": images, "vae": str(folder / "vae"), "device": "cpu"}


EXAMPLES = {
    "backbone:adm-unet": [
        ADM,
        Example(
            settings={
                **ADM, **LABELS, "attention_kernel": "math", "learn_sigma": True,
                "attention_split": "parts-first", "checkpoint_blocks": True,
            },
            data=IMAGES,
        ),
        {**ADM, "resample_blocks": False, "scale_shift": False, "heads": 2},
    ],
    "backbone:vae-encoder": [
        Example(settings={"config": VAE}, data=IMAGES),
        Example(settings={"config": VAE, "image_size": 8}, data=IMAGES),
    ],
    "backbone:cifar-resnet": [{"depth": 8}],
    "backbone:dit": [
        DIT,
        Example(
            settings={
                **DIT, **LABELS, "attention_kernel": "math", "learn_sigma": True, "norm": "rms",
                "mlp": "swiglu", "rope": True, "qk_norm": True, "checkpoint_blocks": True,
            },
            data=IMAGES,
        ),
    ],
    "backbone:ddpmpp-unet": [
        DDPMPP,
        Example(
            settings={
                **DDPMPP, **LABELS, "attention_kernel": "math", "augment_dim": 9,
                "checkpoint_blocks": True,
            },
            data=IMAGES,
        ),
    ],
    "backbone:diffusers:DiT": [
        Example(
            settings={"config": DIFFUSERS_DIT, "conditional": True, "attention_kernel": "math"},
            data=LATENTS,
        )
    ],
    "backbone:diffusers:SD3": [Example(settings={"config": SD3, "tokens": 3}, data=LATENTS)],
    "backbone:diffusers:UNet2DConditionModel": [
        Example(settings={"config": TEXT_UNET, "conditional": True, "guided": True}, data=LATENTS)
    ],
    "backbone:diffusers:UNet2DModel": [
        {"config": UNET, "conditional": True, "label_dropout": 0.1, "attention_kernel": "math"},
        {"config": UNET, "lora": {"rank": 2}, "checkpoint_blocks": True},
    ],
    "backbone:normless-resnet": [{}, {"channels": 16, "stages": 2}],
    "backbone:preact-resnet18": [
        {"channels": 4},
        {"channels": 4, "activation": "silu", "final_norm": False},
    ],
    "backbone:timm:test_convnext": [{"drop_path": 0.2, "image_size": 64}],
    "backbone:timm:test_resnet": [{}],
    "backbone:timm:test_vit": [
        {"patch_size": 4, "attention_kernel": "math", "dropout": 0.1},
        {"patch_size": 4, "checkpoint_blocks": True},
    ],
    "backbone:trades-cnn": [
        Example(data=DIGITS),
        Example(settings={"dropout": 0.0, "mean": [0.5], "std": [0.3]}, data=SMALL_DIGITS),
    ],
    "backbone:vae-decoder": [Example(settings={"config": VAE}, data=LATENTS)],
    "backbone:wide-resnet": [
        {"depth": 10, "width": 1},
        Example(settings={"depth": 10, "width": 1, "activation": "relu"}, data=ODD),
    ],
    "dataset:latent": [
        latents,
        lambda folder: {**latents(folder), "posterior": "sample", "cache": str(folder / "kept")},
    ],
}  # fmt: skip

EXPECTED = {
    # A tap is the output of a block, a pair: its image half is there before its text half.
    "backbone:diffusers:SD3/stop-at-is-the-full-forward": (
        "a block of SD3 makes the prompt's tokens after the image's"
    ),
    "backbone:vae-encoder/shapes": "its output is the latent of an image, of another shape",
    "backbone:vae-encoder#2/shapes": "its output is the latent of an image, of another shape",
    "backbone:vae-decoder/shapes": "its output is the image of a latent, of another shape",
}

test_backbones_keep_the_laws = laws(
    "advdiff-backbones", examples=EXAMPLES, expected_failures=EXPECTED, witnesses=5
)
