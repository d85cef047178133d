"""The backbone `dit`: equal to diffusers' DiT, options by their formulas, sizes of the papers."""

import math

import pytest
import torch
import torch.nn.functional as F
from advdiff_backbones.dit import DiT
from advdiff_backbones.dit_blocks import RotaryEmbedding

from advdiff_core.backbones.unet import UNet
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo

PATH = "models.student"
XL = {"width": 1152, "depth": 28, "heads": 16, "conditional": True}
LIGHTNING = {**XL, "patch": 1, "norm": "rms", "mlp": "swiglu", "rope": True}


def build_of(channels, size, classes=1000):
    """A `Build` with latents."""
    return Build(path=PATH, data=DataInfo(shape=(channels, *size), count=10, classes=classes))


def dit(build, **settings):
    """A transformer in eval mode, of which no weight is zero."""
    torch.manual_seed(0)
    net = DiT(DiT.Settings(**settings), build).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def normal(*shape, seed=0):
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "channels", "size", "count"),
    [
        # Peebles & Xie (2023), table 1, with position codes and both halves of the output.
        ({**XL, "learn_sigma": True}, 4, 32, 675_129_632),
        ({"conditional": True, "learn_sigma": True}, 4, 32, 32_963_360),
        (LIGHTNING, 32, 16, 675_256_736),
    ],
    ids=["DiT-XL/2", "DiT-S/2", "LightningDiT-XL/1"],
)
def test_dit_has_the_size_of_the_papers(settings, channels, size, count):
    """Numbers in the checkpoints but rotary tables, counted without memory for them."""
    with torch.device("meta"):
        net = DiT(DiT.Settings(**settings), build_of(channels, (size, size)))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert parameters + net.pos_embed.numel() == count
    assert round(count, -6) in (675_000_000, 33_000_000)


def of_diffusers(state, depth):
    """Weights of diffusers' transformer from ours: own names, queries, keys and values apart."""
    made = {
        "pos_embed.proj": "x_embedder.proj",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    for n in range(depth):
        ours, theirs = f"blocks.{n}", f"transformer_blocks.{n}"
        made[f"{theirs}.norm1.linear"] = f"{ours}.adaLN_modulation.1"
        made[f"{theirs}.norm1.emb.timestep_embedder.linear_1"] = "t_embedder.mlp.0"
        made[f"{theirs}.norm1.emb.timestep_embedder.linear_2"] = "t_embedder.mlp.2"
        made[f"{theirs}.attn1.to_out.0"] = f"{ours}.attn.proj"
        made[f"{theirs}.ff.net.0.proj"] = f"{ours}.mlp.fc1"
        made[f"{theirs}.ff.net.2"] = f"{ours}.mlp.fc2"
    found = {
        f"{theirs}.{part}": state[f"{ours}.{part}"]
        for theirs, ours in made.items()
        for part in ("weight", "bias")
    }
    table = state["y_embedder.embedding_table.weight"]
    for n in range(depth):
        block = f"transformer_blocks.{n}"
        found[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = table
        for part in ("weight", "bias"):
            split = state[f"blocks.{n}.attn.qkv.{part}"].chunk(3)
            for name, tensor in zip("qkv", split, strict=True):
                found[f"{block}.attn1.to_{name}.{part}"] = tensor
    return found


def test_plain_dit_equals_that_of_diffusers():
    """Same weights under their names, same outputs: mean, variance, and the null label's."""
    diffusers = pytest.importorskip("diffusers")
    ours = dit(
        build_of(4, (8, 8), 10), width=32, depth=2, heads=4, conditional=True, learn_sigma=True,
    )  # fmt: skip
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, patch_size=2, num_embeds_ada_norm=10,
        norm_eps=1e-6,
    ).eval()  # fmt: skip
    for block in theirs.transformer_blocks:
        # The rates of the time features end one step later in the paper's network.
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    missing, unexpected = theirs.load_state_dict(of_diffusers(ours.state_dict(), 2), strict=False)
    assert unexpected == []
    assert [name for name in missing if name != "pos_embed.pos_embed"] == []
    x = normal(3, 4, 8, 8).float()
    t, labels = torch.tensor([0, 17, 999]), torch.tensor([3, 9, 10])
    with torch.no_grad():
        wanted = theirs(x, timestep=t, class_labels=labels).sample
        found = ours(x, t.float(), labels)
    torch.testing.assert_close(found.output, wanted[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.variance, wanted[:, 4:], rtol=1e-4, atol=1e-5)


def rms(x, weight):
    """RMSNorm by its formula."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def rotated(x, size):
    """Queries or keys [B, heads, N, D], pairs of which are turned as complex numbers."""
    pairs = x.shape[-1] // 4
    rates = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    row = torch.arange(size[0] * size[1], dtype=torch.float64) // size[1]
    column = torch.arange(size[0] * size[1], dtype=torch.float64) % size[1]
    angle = torch.cat([row[:, None] * rates, column[:, None] * rates], dim=1)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.view_as_real(turned).flatten(-2)


def lightning_block(state, x, c, size, heads):
    """One block of LightningDiT, read off its formulas with plain products."""

    def layer(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    shift, scale, gate, shift2, scale2, gate2 = (
        part[:, None] for part in layer("adaLN_modulation.1", F.silu(c)).chunk(6, dim=1)
    )
    h = rms(x, state["norm1.weight"]) * (1 + scale) + shift
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in layer("attn.qkv", h).chunk(3, 2)
    )
    q = rotated(rms(q, state["attn.q_norm.weight"]), size)
    k = rotated(rms(k, state["attn.k_norm.weight"]), size)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    x = x + gate * layer("attn.proj", (weights @ v).transpose(1, 2).flatten(2))
    h = rms(x, state["norm2.weight"]) * (1 + scale2) + shift2
    gating, value = layer("mlp.w12", h).chunk(2, dim=-1)
    return x + gate2 * layer("mlp.w3", F.silu(gating) * value)


@pytest.mark.parametrize("kernel", ["fused", "math"])
def test_lightning_options_equal_their_formulas(kernel):
    """RMSNorm, SwiGLU, rotary positions on an oblong grid and QK norms, in float64."""
    size, heads = (2, 4), 2
    net = dit(
        build_of(3, size), width=16, depth=1, heads=heads, patch=1, norm="rms", mlp="swiglu",
        rope=True, qk_norm=True, attention_kernel=kernel,
    ).double()  # fmt: skip
    net.feat_rope = RotaryEmbedding(size, 8).double()
    x, c = normal(2, 8, 16), normal(2, 16, seed=1)
    with torch.no_grad():
        found = net.blocks[0](x, c, net.feat_rope)
    wanted = lightning_block(net.blocks[0].state_dict(), x, c, size, heads)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert net.blocks[0].mlp.w3.in_features == int(2 * 4 * 16 / 3)


def test_rotary_products_depend_on_distance_alone():
    """Queries and keys moved together by a row and a column have the same product."""
    rope = RotaryEmbedding((5, 5), 8).double()
    q, k = normal(8), normal(8, seed=1)
    turned_q, turned_k = rope(q.expand(25, 8)), rope(k.expand(25, 8))
    products = turned_q @ turned_k.T
    torch.testing.assert_close(products[0, 7], products[6, 13], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(products[3, 10], products[13, 20], rtol=1e-5, atol=1e-6)
    assert not torch.isclose(products[0, 7], products[0, 11])


def test_output_is_zero_at_the_start_and_every_block_the_identity():
    """adaLN-Zero: tokens pass all blocks unchanged, and the network gives zeros."""
    torch.manual_seed(0)
    net = DiT(DiT.Settings(width=16, depth=3, heads=2), build_of(3, (8, 8))).eval()
    x = normal(2, 3, 8, 8).float()
    out = net(x, torch.tensor([3.0, 900.0]), taps=tuple(net.taps))
    assert not out.output.any()
    torch.testing.assert_close(out.features["blocks.0"], net.x_embedder(x) + net.pos_embed)
    assert torch.equal(out.features["blocks.0"], out.features["blocks.2"])


def test_states_hold_what_the_checkpoints_hold():
    """Names of LightningDiT: norms with weights, fused SwiGLU, rotary tables, position codes."""
    net = dit(build_of(4, (4, 4)), **{**LIGHTNING, "width": 32, "depth": 1, "heads": 4})
    names = set(net.state_dict())
    assert {
        "pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin", "x_embedder.proj.weight",
        "t_embedder.mlp.0.weight", "y_embedder.embedding_table.weight", "blocks.0.norm1.weight",
        "blocks.0.attn.qkv.bias", "blocks.0.mlp.w12.weight", "blocks.0.mlp.w3.bias",
        "blocks.0.adaLN_modulation.1.weight", "final_layer.norm_final.weight",
        "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias",
    } <= names  # fmt: skip
    assert net.feat_rope.freqs_cos.shape == (16, 8)
    assert net.y_embedder.embedding_table.num_embeddings == 1001


@pytest.mark.parametrize(
    ("settings", "key", "message"),
    [
        ({"width": 18}, "width", "18 is no multiple of 4, as positions need"),
        ({"width": 16, "heads": 3}, "heads", "3 does not divide width = 16"),
        (
            {"width": 24, "heads": 4, "rope": True}, "heads",
            "width / heads is 6, rope needs a multiple of 4",
        ),
        ({"patch": 3}, "patch", '"dit" needs sides that 3 divides, the data have 8x8'),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_key(settings, key, message):
    """The fault names the key, the numbers and a mend."""
    with pytest.raises(RecipeError) as caught:
        dit(build_of(3, (8, 8)), **settings)
    fault = caught.value.faults[0]
    assert (fault.key, fault.message) == (f"{PATH}.{key}", message)
    assert fault.fix


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("tap", ["blocks.0", "blocks.1"])
def test_modulated_features_are_what_the_next_layer_reads(norm, tap):
    """Of the next block its attention, and the last linear layer after the last block."""
    build = build_of(3, (8, 8), classes=4)
    net = dit(build, width=16, depth=2, heads=2, conditional=True, norm=norm).double()
    x, level, labels = normal(3, 3, 8, 8), torch.tensor([0.0, 500.0, 900.0]).double(), [0, 3, 1]
    read: list[torch.Tensor] = []
    reader = net.blocks[1].attn if tap == "blocks.0" else net.final_layer.linear
    reader.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    found = net(x, level, torch.tensor(labels), taps=(tap,)).features[tap]
    modulated = net.modulated(tap, found, level, torch.tensor(labels))
    torch.testing.assert_close(modulated, read[0], rtol=1e-12, atol=1e-12)


def test_networks_without_adaptive_norms_say_so():
    """A U-Net has no norm after a tap that knows the noise level."""
    build = Build(path=PATH, data=DataInfo(shape=(3, 8, 8), count=10))
    net = UNet(UNet.Settings(), build)
    with pytest.raises(ContractError, match=r"no adaptive norm reads the tap 'mid\.0'") as caught:
        net.modulated("mid.0", normal(1, 64, 2, 2), None, None)
    assert (caught.value.where, caught.value.fix) == (PATH, "ask for the features as they are")
