"""The backbone `adm-unet`: equal to diffusers' reading of ADM, sizes of the papers."""

import pytest
import torch
from advdiff_backbones.adm_unet import ADMUNet

from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

PATH = "models.student"
IMAGENET64 = {
    "channels": 192, "channel_mult": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8),
    "head_channels": 64, "attention_split": "parts-first", "learn_sigma": True,
    "conditional": True, "classes": 1000,
}  # fmt: skip
IMPROVED_CIFAR = {"heads": 4, "resample_blocks": False, "learn_sigma": True}
SMALL = {"channels": 32, "channel_mult": (1, 2), "blocks": 1, "attention": (4,), "head_channels": 8}


def build_of(size=8, classes=10):
    """A `Build` with square images."""
    data = DataInfo(shape=(3, size, size), count=10, domain=Domain(-1.0, 1.0), classes=classes)
    return Build(path=PATH, data=data)


def adm(build=None, **settings):
    """A small U-Net in eval mode, of which no weight is zero."""
    torch.manual_seed(0)
    net = ADMUNet(ADMUNet.Settings(**(SMALL | settings)), build or build_of()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def inputs(count=3):
    """Images, noise levels, labels."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, torch.tensor([0.0, 17.0, 999.0])[:count], torch.tensor([3, 9, 0])[:count]


@pytest.mark.parametrize(
    ("settings", "size", "millions"),
    [(IMAGENET64, 64, 295.9), (IMPROVED_CIFAR, 32, 52.5)],
    ids=["ADM, ImageNet 64x64", "improved DDPM, CIFAR-10"],
)
def test_adm_has_the_size_of_the_papers(settings, size, millions):
    """Parameters as the papers give them, counted without memory for them."""
    with torch.device("meta"):
        net = ADMUNet(ADMUNet.Settings(**settings), build_of(size))
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count == pytest.approx(1e6 * millions, abs=5e4)


def test_states_are_named_as_guided_diffusion_names_them():
    """Spot checks of every kind of layer, with their shapes."""
    state = adm(conditional=True, learn_sigma=True).state_dict()
    shapes = {
        "time_embed.0.weight": (128, 32), "time_embed.2.bias": (128,),
        "label_emb.weight": (10, 128), "input_blocks.0.0.weight": (32, 3, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (32,),
        "input_blocks.1.0.emb_layers.1.weight": (64, 128),
        "input_blocks.2.0.in_layers.2.weight": (32, 32, 3, 3),
        "input_blocks.3.0.skip_connection.weight": (64, 32, 1, 1),
        "input_blocks.3.1.qkv.weight": (192, 64, 1), "input_blocks.3.1.norm.bias": (64,),
        "middle_block.1.proj_out.weight": (64, 64, 1),
        "middle_block.2.out_layers.3.weight": (64, 64, 3, 3),
        "output_blocks.1.2.out_layers.0.weight": (64,),
        "output_blocks.3.0.in_layers.2.weight": (32, 64, 3, 3),
        "out.0.weight": (32,), "out.2.weight": (6, 32, 3, 3),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    plain = adm(resample_blocks=False).state_dict()
    assert {"input_blocks.2.0.op.weight", "output_blocks.1.2.conv.weight"} <= set(plain)


RES = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def of_diffusers(state):
    """Weights of diffusers' U-Net with one block a level and two levels, from ours."""
    places = {
        "input_blocks.1.0": "down_blocks.0.resnets.0",
        "input_blocks.2.0": "down_blocks.0.downsamplers.0",
        "input_blocks.3.0": "down_blocks.1.resnets.0",
        "input_blocks.3.1": "down_blocks.1.attentions.0",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "output_blocks.0.0": "up_blocks.0.resnets.0",
        "output_blocks.0.1": "up_blocks.0.attentions.0",
        "output_blocks.1.0": "up_blocks.0.resnets.1",
        "output_blocks.1.1": "up_blocks.0.attentions.1",
        "output_blocks.1.2": "up_blocks.0.upsamplers.0",
        "output_blocks.2.0": "up_blocks.1.resnets.0",
        "output_blocks.3.0": "up_blocks.1.resnets.1",
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb": "class_embedding",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    found = {}
    for name, tensor in state.items():
        place = max((p for p in places if name.startswith(f"{p}.")), key=len)
        layer, _, part = name[len(place) + 1 :].rpartition(".")
        # Convolutions over positions there are linear layers here.
        plain = tensor.squeeze(-1) if tensor.dim() == 3 else tensor
        if layer == "qkv":
            for letter, piece in zip("qkv", plain.chunk(3), strict=True):
                found[f"{places[place]}.to_{letter}.{part}"] = piece
        elif layer == "proj_out":
            found[f"{places[place]}.to_out.0.{part}"] = plain
        else:
            theirs = {"norm": "group_norm", **RES}.get(layer, layer)
            found[".".join(filter(None, (places[place], theirs, part)))] = tensor
    return found


def test_adm_equals_diffusers_reading_of_it():
    """Same weights under diffusers' names for ADM (its consistency models), same outputs."""
    diffusers = pytest.importorskip("diffusers")
    ours = adm(conditional=True, attention_split="parts-first")
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, num_class_embeds=10,
        block_out_channels=(32, 64), attention_head_dim=8, norm_num_groups=32,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet",
        flip_sin_to_cos=True, freq_shift=0, norm_eps=1e-5, act_fn="silu", attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    theirs.load_state_dict(of_diffusers(ours.state_dict()))
    x, t, labels = inputs()
    with torch.no_grad():
        wanted = theirs(x, t, class_labels=labels).sample
        found = ours(x, t, labels).output
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_attention_splits_differ_by_the_order_of_rows_alone():
    """Rows of the weights moved from one order to the other give the same output."""
    heads_first, parts_first = (
        adm(attention_split=split) for split in ("heads-first", "parts-first")
    )
    state = heads_first.state_dict()
    for name in [name for name in state if ".qkv." in name]:
        tensor = state[name]
        heads = tensor.shape[0] // 3 // 8
        by_head = tensor.unflatten(0, (heads, 3, 8))
        state[name] = by_head.transpose(0, 1).flatten(0, 2)
    x, t, _ = inputs()
    wanted = heads_first(x, t).output
    assert not torch.allclose(parts_first(x, t).output, wanted)
    parts_first.load_state_dict(state)
    torch.testing.assert_close(parts_first(x, t).output, wanted, rtol=1e-4, atol=1e-5)


def test_learned_variance_leaves_the_mean_alone():
    """With the first half of the last layer's rows the mean is that of a network without a head."""
    with_head, without = adm(learn_sigma=True), adm()
    state = with_head.state_dict()
    for name in ("out.2.weight", "out.2.bias"):
        state[name] = state[name][:3]
    without.load_state_dict(state)
    x, t, _ = inputs()
    found, plain = with_head(x, t), without(x, t)
    torch.testing.assert_close(found.output, plain.output)
    assert found.variance.shape == x.shape
    assert not torch.allclose(found.variance, found.output)
    assert plain.variance is None


def test_shift_alone_adds_the_embedding_before_the_norm():
    """Without scale and shift the embedding is added between convolution and norm."""
    block = adm(scale_shift=False).input_blocks[1][0].double()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 32, 4, 4, generator=generator, dtype=torch.float64)
    embedding = torch.randn(2, 128, generator=generator, dtype=torch.float64)
    norm, silu, conv = block.in_layers
    h = conv(silu(norm(x))) + block.emb_layers(embedding)[:, :, None, None]
    wanted = x + block.out_layers(h)
    torch.testing.assert_close(block(x, embedding), wanted)


@pytest.mark.parametrize(
    ("settings", "size", "key", "message"),
    [
        (
            {"channel_mult": (1, 2, 2)}, 6, "channel_mult",
            '"adm-unet" needs sides that 4 divides, the data have 6x6',
        ),
        (
            {"head_channels": 24}, 8, "head_channels",
            "24 does not divide the 64 channels that attention is over",
        ),
        ({"heads": 5}, 8, "heads", "5 does not divide the 64 channels that attention is over"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_key(settings, size, key, message):
    """The fault names the key, the numbers and a mend."""
    with pytest.raises(RecipeError) as caught:
        adm(build_of(size), **settings)
    fault = caught.value.faults[0]
    assert (fault.key, fault.message) == (f"{PATH}.{key}", message)
    assert fault.fix
