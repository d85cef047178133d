"""Stable Diffusion XL: what its U-Net reads beside the latents, and embeddings for it and SD3."""

import pytest
import torch
from advdiff_backbones.diffusers_models import DiffusersFamily, Lora
from helpers_nets import PATH, image_build, lively
from safetensors.torch import save_file

from advdiff_core.errors import DataError, RecipeError

TINY = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": (2, 4), "cross_attention_dim": 12, "transformer_layers_per_block": (1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 34,
}  # fmt: skip
PLAIN = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "cross_attention_dim": 12,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def made(config=TINY, **settings):
    """A tiny network of its shape with weights that all matter, in eval mode."""
    torch.manual_seed(0)
    chosen = DiffusersFamily.settings_type("UNet2DConditionModel")(config=config, **settings)
    build = image_build((4, 8, 6), classes=3, domain=None, c_noise=(1.0, 1000.0))
    return lively(DiffusersFamily(chosen, build))


def inputs():
    """Noised latents [2, 4, 8, 6], noise levels [2] and labels [2]."""
    x = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([1.0, 501.0]), torch.tensor([2, 0])


@pytest.mark.parametrize("frame", [(), (70, 60, 3, 2, 64, 48)])
def test_output_is_that_of_the_raw_call(frame):
    """Pooled embeddings and the frame arrive as diffusers wants them; by default it is uncut."""
    net = made(conditional=True, frame=frame)
    x, level, labels = inputs()
    told = torch.tensor([frame or (64, 48, 0, 0, 64, 48)] * 2).float()
    text = net.prompts
    added = {"text_embeds": text.pooled[labels], "time_ids": told}
    wanted = net.net(x, level - 1, text.prompts[labels], added_cond_kwargs=added).sample
    assert torch.equal(net(x, level, labels).output, wanted)
    assert net.prompts.pooled.shape == (4, 34 - 6 * 4)
    other = {**added, "time_ids": told + 1}
    changed = net.net(x, level - 1, text.prompts[labels], added_cond_kwargs=other).sample
    assert not torch.equal(changed, wanted)


def test_the_frame_is_no_part_of_the_state():
    """It is the recipe's; weights of the published network fit as they are."""
    assert "frame" not in made().state_dict()


def test_pooled_prompts_come_from_the_file(tmp_path):
    """Both tables are read; one that is missing is named, with its shape and the mend."""
    file = tmp_path / "p.safetensors"
    save_file({"prompts": torch.randn(4, 5, 12), "pooled": torch.randn(4, 10)}, file)
    net = made(conditional=True, prompts=file)
    assert net.prompts.pooled.shape == (4, 10)
    assert not list(net.prompts.parameters())
    save_file({"prompts": torch.randn(4, 5, 12)}, file)
    with pytest.raises(DataError, match=r"wanted pooled \[4, 10\], found none") as caught:
        made(conditional=True, prompts=file)
    assert "embed_prompts" in caught.value.fix


def test_frames_of_another_length_and_of_other_networks_are_refused():
    """Six numbers or none, and only where the network asks."""
    with pytest.raises(ValueError, match="frame: found 4 numbers, wanted 6 or none"):
        made(frame=(1, 2, 3, 4))
    with pytest.raises(RecipeError, match="is told nothing of a picture's frame") as caught:
        made(PLAIN, frame=(1, 2, 3, 4, 5, 6))
    assert caught.value.faults[0].key == f"{PATH}.frame"


#: Arguments of the published networks, and how many parameters these have.
PUBLISHED = {
    "sd15": ("UNet2DConditionModel", (4, 64, 64), {"cross_attention_dim": 768}, 859_520_964),
    "sdxl": (
        "UNet2DConditionModel",
        (4, 128, 128),
        {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280),
            "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
            "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        2_567_463_684,
    ),
    "sd3": (
        "SD3",
        (16, 128, 128),
        {
            "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
            "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
        },
        # With its table of positions, which is no parameter, 2,084,951,104 numbers.
        2_028_328_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_fit_with_adapters(name):
    """Built on no memory from their published arguments: parameters, prompts, and a forward."""
    kind, shape, config, wanted = PUBLISHED[name]
    build = image_build(shape, classes=2, domain=None, c_noise=(1.0, 1000.0))
    chosen = DiffusersFamily.settings_type(kind)(
        config=config, conditional=True, tokens=77, lora=Lora(rank=2)
    )
    with torch.device("meta"):
        net = DiffusersFamily(chosen, build)
        out = net(torch.empty(2, *shape), torch.empty(2), torch.zeros(2, dtype=torch.int64))
    assert out.output.shape == (2, *shape)
    own = {name: p for name, p in net.net.named_parameters() if "lora_" not in name}
    assert sum(p.numel() for p in own.values()) == wanted
    trained = {name for name, p in net.net.named_parameters() if p.requires_grad}
    assert trained == set(dict(net.net.named_parameters())) - set(own)
