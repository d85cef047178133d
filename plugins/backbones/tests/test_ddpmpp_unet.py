"""The backbone `ddpmpp-unet`: names, sizes, and a plain float64 reading of its formulas."""

import math

import pytest
import torch
import torch.nn.functional as F
from advdiff_backbones.ddpmpp_blocks import wave
from advdiff_backbones.ddpmpp_unet import DDPMppUNet

from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo, Domain

PATH = "models.student"
PARTS = ("weight", "bias")
SMALL = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (8,)}


def build_of(shape=(3, 8, 4), classes=3):
    """A `Build` with oblong images."""
    data = DataInfo(shape=shape, count=10, domain=Domain(-1.0, 1.0), classes=classes)
    return Build(path=PATH, data=data)


def ddpmpp(build=None, **settings):
    """A small U-Net in eval mode and float64, of which no weight is zero."""
    torch.manual_seed(0)
    net = DDPMppUNet(DDPMppUNet.Settings(**(SMALL | settings)), build or build_of())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.double().eval()


def inputs(count=3):
    """Images, noise levels as EDM gives them, labels (the last one missing), augment labels."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, 8, 4, generator=generator, dtype=torch.float64)
    augment = torch.randn(count, 9, generator=generator, dtype=torch.float64)
    level = torch.tensor([-1.5, 0.1, 1.1], dtype=torch.float64)
    return x, level, torch.tensor([0, 2, 3]), augment


def test_ddpmpp_has_the_names_and_sizes_of_edm():
    """At the CIFAR-10 setting: 55.74 M parameters and 427 entries, counted without memory."""
    settings = DDPMppUNet.Settings(conditional=True, augment_dim=9)
    with torch.device("meta"):
        net = DDPMppUNet(settings, build_of((3, 32, 32), 10))
    state = net.state_dict()
    assert sum(parameter.numel() for parameter in net.parameters()) == 55_735_299
    assert len(state) == 427
    filters = [name for name in state if name.endswith("resample_filter")]
    blocks = ("enc.16x16_down", "enc.8x8_down", "dec.16x16_up", "dec.32x32_up")
    assert filters == [f"{b}.{c}.resample_filter" for b in blocks for c in ("conv0", "skip")]
    shapes = {
        "map_label.weight": (128, 10), "map_augment.weight": (128, 9),
        "map_layer0.weight": (512, 128), "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1), "enc.16x16_block3.proj.bias": (256,),
        "enc.16x16_block0.qkv.weight": (768, 256, 1, 1), "dec.8x8_in0.norm2.weight": (256,),
        "dec.8x8_in1.affine.weight": (256, 512), "dec.8x8_block4.conv0.weight": (256, 512, 3, 3),
        "dec.16x16_block4.qkv.bias": (768,), "dec.32x32_block4.norm0.weight": (384,),
        "dec.32x32_aux_norm.bias": (256,), "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }  # fmt: skip
    assert {name: tuple(state[name].shape) for name in shapes} == shapes
    attending = {name.rsplit(".", 2)[0] for name in state if ".qkv." in name}
    wanted = {f"enc.16x16_block{n}" for n in range(4)} | {"dec.8x8_in0", "dec.16x16_block4"}
    assert attending == wanted


def test_taps_stand_in_forward_order_at_the_sizes_of_edm():
    """All blocks of the CIFAR-10 network, encoder before decoder, one level after the other."""
    with torch.device("meta"):
        net = DDPMppUNet(DDPMppUNet.Settings(), build_of((3, 32, 32), 10))
    names = list(net.taps)
    assert len(names) == 34
    assert names[:3] == ["enc.32x32_conv", "enc.32x32_block0", "enc.32x32_block1"]
    assert names[14:18] == ["enc.8x8_block3", "dec.8x8_in0", "dec.8x8_in1", "dec.8x8_block0"]
    assert names[-1] == "dec.32x32_block4"
    assert net.taps["dec.8x8_in1"].width == 256
    assert net.taps["dec.8x8_in1"].size == (8, 8)


class Reading:
    """The network read off its formulas, one tensor of the state after the other.

    Every step is a plain function of float64 tensors: convolutions and resampling as EDM writes
    them, attention with the full matrix.
    """

    def __init__(self, state):
        self.state = state

    def conv(self, name, x):
        """A convolution, after a resampling with its filter where the state has one."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        box = self.state.get(f"{name}.resample_filter")
        if box is not None:
            many = box.tile(x.shape[1], 1, 1, 1)
            up = ".".join(name.split(".")[:2]).endswith("_up")
            x = (
                F.conv_transpose2d(x, 4 * many, stride=2, groups=x.shape[1])
                if up
                else F.conv2d(x, many, stride=2, groups=x.shape[1])
            )
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        """GroupNorm with groups of four channels, by means and variances."""
        groups = x.unflatten(1, (min(32, x.shape[1] // 4), -1))
        mean = groups.mean((2, 3, 4), keepdim=True)
        variance = (groups - mean).square().mean((2, 3, 4), keepdim=True)
        plain = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return plain * weight[:, None, None] + bias[:, None, None]

    def linear(self, name, x):
        """A linear layer."""
        return x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0.0)

    def block(self, name, x, embedding):
        """A residual block."""
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)))
        h = h + self.linear(f"{name}.affine", embedding)[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        skip = self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.state else x
        h = (skip + h) * math.sqrt(0.5)
        return self.attention(name, h) if f"{name}.qkv.weight" in self.state else h

    def attention(self, name, x):
        """One head; query, key and value of a channel are neighbours."""
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).flatten(2)
        q, k, v = qkv[:, 0::3], qkv[:, 1::3], qkv[:, 2::3]
        weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(k.shape[1])).softmax(-1)
        mixed = torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape)
        return (self.conv(f"{name}.proj", mixed) + x) * math.sqrt(0.5)

    def embedding(self, level, labels, augment, classes):
        """Noise level, label and augmentation."""
        rates = (1 / 10_000) ** (torch.arange(4, dtype=torch.float64) / 3)
        h = torch.cat([(level[:, None] * rates).sin(), (level[:, None] * rates).cos()], 1)
        one_hot = (labels[:, None] == torch.arange(classes)).double()
        h = h + self.linear("map_label", one_hot * math.sqrt(classes))
        h = h + self.linear("map_augment", augment)
        return F.silu(self.linear("map_layer1", F.silu(self.linear("map_layer0", h))))

    def __call__(self, x, level, labels, augment):
        """The network with two levels and one block."""
        e = self.embedding(level, labels, augment, 3)
        a = self.conv("enc.8x4_conv", x)
        b = self.block("enc.8x4_block0", a, e)
        c = self.block("enc.4x2_down", b, e)
        d = self.block("enc.4x2_block0", c, e)
        h = self.block("dec.4x2_in1", self.block("dec.4x2_in0", d, e), e)
        h = self.block("dec.4x2_block0", torch.cat([h, d], 1), e)
        h = self.block("dec.4x2_block1", torch.cat([h, c], 1), e)
        h = self.block("dec.8x4_up", h, e)
        h = self.block("dec.8x4_block0", torch.cat([h, b], 1), e)
        h = self.block("dec.8x4_block1", torch.cat([h, a], 1), e)
        return self.conv("dec.8x4_aux_conv", F.silu(self.norm("dec.8x4_aux_norm", h)))


@pytest.mark.parametrize("kernel", ["fused", "math"])
def test_ddpmpp_equals_a_plain_reading_of_its_formulas(kernel):
    """With class labels, a missing one, and augment labels; both attention kernels."""
    net = ddpmpp(conditional=True, augment_dim=9, attention_kernel=kernel)
    x, level, labels, augment = inputs()
    with torch.no_grad():
        found = net(x, level, labels, c_augment=augment).output
        wanted = Reading(net.state_dict())(x, level, labels, augment)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_no_augment_labels_are_zeros():
    """A sample that was not augmented, and one of which nothing is known, are the same."""
    net = ddpmpp(conditional=True, augment_dim=9)
    x, level, labels, augment = inputs()
    assert net.augment_dim == 9
    zeros = net(x, level, labels, c_augment=torch.zeros_like(augment)).output
    torch.testing.assert_close(net(x, level, labels).output, zeros)
    assert not torch.allclose(net(x, level, labels, c_augment=augment).output, zeros)


@pytest.mark.parametrize("resample", ["enc.4x2_down", "dec.8x4_up"])
def test_blocks_that_resample_equal_those_of_diffusers(resample):
    """Same weights in diffusers' residual block, same output."""
    resnet = pytest.importorskip("diffusers.models.resnet")
    ours = ddpmpp().get_submodule(resample)
    up = resample.endswith("up")
    theirs = resnet.ResnetBlock2D(
        in_channels=ours.norm0.num_channels, out_channels=ours.norm1.num_channels,
        temb_channels=32, groups=ours.norm0.num_groups, eps=1e-6, skip_time_act=True,
        output_scale_factor=math.sqrt(2), use_in_shortcut=True, up=up, down=not up,
    ).double()  # fmt: skip
    names = {
        "norm1": "norm0", "conv1": "conv0", "time_emb_proj": "affine", "norm2": "norm1",
        "conv2": "conv1", "conv_shortcut": "skip",
    }  # fmt: skip
    state = ours.state_dict()
    theirs.load_state_dict(
        {
            f"{t}.{part}": state[f"{o}.{part}"]
            for t, o in names.items()
            for part in ("weight", "bias")
        }
    )
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, ours.norm0.num_channels, 4, 4, generator=generator, dtype=torch.float64)
    embedding = torch.randn(2, 32, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(ours(x, embedding), theirs(x, embedding))


def test_fresh_network_keeps_variances_and_gives_almost_nothing():
    """Branches end in weights of 1e-5: blocks pass their input on, and the output is small."""
    torch.manual_seed(0)
    net = DDPMppUNet(DDPMppUNet.Settings(**SMALL), build_of()).double().eval()
    x, level, _, _ = inputs()
    out = net(x, level, taps=tuple(net.taps))
    assert out.output.abs().max() < 1e-3
    first, after = out.features["enc.8x4_conv"], out.features["enc.8x4_block0"]
    # Sum of input and branch, times sqrt(1/2), twice where attention ends the block.
    torch.testing.assert_close(after, first / 2, rtol=1e-2, atol=1e-3)


def test_wave_is_the_embedding_of_edm():
    """Sines first; the last rate is exactly 1 / 10,000."""
    level = torch.tensor([0.7, 900.0], dtype=torch.float64)
    found = wave(level, 8)
    rates = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4], dtype=torch.float64)
    torch.testing.assert_close(found[:, :4], (level[:, None] * rates).sin())
    torch.testing.assert_close(found[:, 4:], (level[:, None] * rates).cos())


def test_filters_of_another_size_are_refused():
    """A checkpoint of NCSN++, whose filter is [1, 3, 3, 1], does not load."""
    net = ddpmpp()
    state = net.state_dict()
    state["enc.4x2_down.conv0.resample_filter"] = torch.ones(1, 1, 4, 4)
    with pytest.raises(RuntimeError, match="resample_filter"):
        net.load_state_dict(state)


def test_sides_that_cannot_be_halved_are_refused_by_key():
    """The fault names the setting, the size and the factor."""
    with pytest.raises(RecipeError) as caught:
        ddpmpp(build_of((3, 8, 6)), channel_mult=(1, 1, 1))
    fault = caught.value.faults[0]
    assert fault.key == f"{PATH}.channel_mult"
    assert fault.message == '"ddpmpp-unet" needs sides that 4 divides, the data have 8x6'
