"""Targets against an independent reading: hidden states by hook, features as timm gives them."""

from __future__ import annotations

import pytest
import torch
from helpers_targets import draws, images, made, module

diffusers = pytest.importorskip("diffusers")
timm = pytest.importorskip("timm")

UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 4, "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
STEPS = 1000


def alpha_bar(step: int) -> float:
    """Of the linear schedule of Ho et al. (2020), by its definition."""
    betas = torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)
    return float((1 - betas).cumprod(0)[step])


def test_the_target_is_the_hidden_state_of_a_unet_of_diffusers() -> None:
    """`UNet2DModel` called as its documentation says, its middle block caught by a hook."""
    step = 80
    experiment = made(
        teacher={
            "use": "diffusers:UNet2DModel", "parametrization": "eps", "frozen": True,
            "config": UNET,
        },
        target={"tap": "mid_block", "t": (step + 1) / STEPS},
        schedule="vp-linear",
    )  # fmt: skip
    own = module(experiment, "teacher").net
    copy = diffusers.UNet2DModel.from_config(own.config).eval()
    copy.load_state_dict(own.state_dict())
    caught: list[torch.Tensor] = []
    copy.mid_block.register_forward_hook(lambda *args: caught.append(args[2]))
    kept = alpha_bar(step)
    noise = draws().child("noise").normal((6, 1, 8, 8))
    x_t = kept**0.5 * images() + (1 - kept) ** 0.5 * noise
    with torch.no_grad():
        copy(x_t.float(), step)
    found = module(experiment)(images(), None, draws())
    torch.testing.assert_close(found, caught[0].mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tap", ["pooled", "features"])
def test_an_encoder_gives_what_timm_gives(tap: str) -> None:
    """`forward_features` and the pooled features of the same model at its own size."""
    name = "vit_tiny_patch16_224"
    experiment = made(
        target={
            "use": "encoder-features", "kind": "alignment_target", "frozen": True, "tap": tap,
            "pooling": "none",
        },
        models={"encoder": {
            "use": f"timm:{name}", "parametrization": "none", "frozen": True, "image_size": 32,
            "patch_size": 8,
        }},
    )  # fmt: skip
    own = module(experiment, "encoder").net
    copy = timm.create_model(
        name, img_size=32, patch_size=8, in_chans=1, num_classes=10, pretrained=False
    ).eval()
    copy.load_state_dict(own.state_dict())
    mean, std = (torch.tensor(copy.pretrained_cfg[key]).mean() for key in ("mean", "std"))
    x = torch.nn.functional.interpolate(
        images(), (32, 32), mode="bilinear", align_corners=False, antialias=True
    )
    with torch.no_grad():
        wanted = copy.forward_features(((x + 1) / 2 - mean) / std)
        wanted = copy.forward_head(wanted, pre_logits=True)[:, None] if tap == "pooled" else wanted
    found = module(experiment)(images(), None, draws())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
