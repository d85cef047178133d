"""The backbones `mlp` and `unet`: shapes, taps, conditioning, second derivatives, compilation."""

import pytest
import torch

from advdiff_core.backbones.layers import group_norm
from advdiff_core.backbones.mlp import MLP
from advdiff_core.backbones.unet import UNet, block_shapes
from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.layers import sinusoidal
from advdiff_core.types import DataInfo, Domain

PATH = "models.student"


def image_build(shape=(1, 8, 8), classes=0, **more):
    """A `Build` with images."""
    data = DataInfo(shape=shape, count=10, domain=Domain(-1.0, 1.0), classes=classes)
    return Build(path=PATH, data=data, **more)


def point_build(classes=0, **more):
    """A `Build` with points."""
    return Build(path=PATH, data=DataInfo(shape=(3,), count=10, classes=classes), **more)


def conditional_build(make):
    """A `Build` with ten classes for `small_mlp` or `small_unet`."""
    return point_build(classes=10) if make is small_mlp else image_build(classes=10)


def small_unet(build=None, **settings):
    """A U-Net of a few thousand weights, in eval mode."""
    wanted = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,)} | settings
    torch.manual_seed(0)
    return awake(UNet(UNet.Settings(**wanted), build or image_build()))


def small_mlp(build=None, **settings):
    """An MLP of a few thousand weights, in eval mode."""
    wanted = {"width": 16, "blocks": 2} | settings
    torch.manual_seed(0)
    return awake(MLP(MLP.Settings(**wanted), build or point_build()))


def awake(net):
    """Give the layers that start at zero weights of their own, so that every part matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def sample(net, count=4, seed=0):
    """Inputs [B, ...] and noise levels [B] for a network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, *net.build.data.shape, generator=generator)
    return x, 1000 * torch.rand(count, generator=generator)


BACKBONES = {"mlp": small_mlp, "unet": small_unet}


@pytest.fixture(params=BACKBONES)
def make(request):
    """Makes one backbone after the other."""
    return BACKBONES[request.param]


@pytest.mark.parametrize(
    ("shape", "mult"),
    [
        ((1, 8, 8), (1, 2)),
        ((3, 16, 16), (1, 2, 2)),
        ((2, 28, 28), (1, 1, 1, 1)),
        ((4, 9, 14), (1, 2)),
    ],
)
def test_unet_keeps_the_shape_of_any_image(shape, mult):
    """Odd and oblong images come out as they went in."""
    net = small_unet(image_build(shape), channel_mult=mult, attention=(7, 8))
    x, level = sample(net, 2)
    assert net(x, level).output.shape == x.shape


def test_output_is_zero_at_the_start(make):
    """The last layer starts at zero: an untrained eps-denoiser predicts no noise."""
    net = make()
    fresh = type(net)(net.settings, net.build)
    x, level = sample(net)
    assert not fresh(x, level).output.any()


def test_taps_have_the_declared_widths_and_sizes(make):
    """Every tap of `taps` comes back with its declared width and size, in forward order."""
    net = make()
    x, level = sample(net)
    features = net(x, level, taps=tuple(net.taps)).features
    assert list(features) == list(net.taps)
    for name, info in net.taps.items():
        assert features[name].shape == (4, info.width, *info.size)


def test_stop_at_gives_the_features_of_the_full_forward(make):
    """Stopping early changes no feature and leaves no output."""
    net = make()
    x, level = sample(net)
    names = tuple(net.taps)
    full = net(x, level, taps=names).features
    for stop, name in enumerate(names):
        early = net(x, level, taps=names[: stop + 1], stop_at=name)
        assert early.output is None
        assert list(early.features) == list(names[: stop + 1])
        assert all(torch.equal(early.features[n], full[n]) for n in early.features)


def test_stop_at_runs_no_later_layer(make):
    """A hook on the last block is never called when the network stops before it."""
    net = make()
    x, level = sample(net)
    calls = []
    net.blocks[-1].register_forward_hook(lambda *_: calls.append(1))
    net(x, level, stop_at=next(iter(net.taps)))
    assert not calls


def test_unknown_tap_is_refused_with_the_nearest_name():
    """The message names the tap, the ones there are and the nearest."""
    net = small_unet()
    x, level = sample(net)
    with pytest.raises(ContractError, match=r"no tap 'mid\.7'; there are down\.0\.0") as caught:
        net(x, level, taps=("mid.7",))
    assert caught.value.where == PATH
    assert "'mid." in caught.value.fix


def test_samples_do_not_mix(make):
    """The output of a sample does not depend on its batch."""
    net = make()
    x, level = sample(net)
    together = net(x, level).output
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1]).output for i in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_inputs_are_not_edited(make):
    """Input and noise level are as before after a forward."""
    net = make()
    x, level = sample(net)
    before = x.clone(), level.clone()
    net(x, level)
    assert torch.equal(x, before[0])
    assert torch.equal(level, before[1])


def test_noise_level_is_scaled_by_its_range(make):
    """Ranges [0, 1000] and [-2, 3] give equal outputs at equal shares of the range."""
    wide, narrow = make(), make()
    narrow = awake(
        type(wide)(wide.settings, Build(path=PATH, data=wide.build.data, c_noise=(-2, 3)))
    )
    narrow.load_state_dict(wide.state_dict())
    x, level = sample(wide)
    torch.testing.assert_close(
        wide(x, level).output, narrow(x, level / 200 - 2).output, rtol=1e-3, atol=1e-4
    )


def test_noise_level_matters(make):
    """Two noise levels give two outputs."""
    net = make()
    x, level = sample(net)
    assert not torch.allclose(net(x, level).output, net(x, level / 2).output)


def test_labels_are_ignored_unless_conditional(make):
    """Without `conditional` the output is the same with and without labels."""
    net = make()
    x, level = sample(net)
    labels = torch.tensor([0, 1, 2, 3])
    assert torch.equal(net(x, level, labels).output, net(x, level).output)


def test_conditional_takes_the_classes_of_the_data(make):
    """There is one embedding per class of the data and one for no label."""
    net = make(conditional_build(make), conditional=True)
    assert net.condition.label_embedding.num_embeddings == 11
    x, level = sample(net)
    first, second = (net(x, level, torch.full((4,), k)).output for k in (0, 9))
    missing, null = net(x, level).output, net(x, level, torch.full((4,), 10)).output
    assert not torch.allclose(first, second)
    assert torch.equal(missing, null)


def test_classes_overrides_the_data():
    """`classes` is used where it is given."""
    net = small_unet(image_build(classes=10), conditional=True, classes=3)
    assert net.condition.label_embedding.num_embeddings == 4


def test_conditional_is_refused_without_labels():
    """Conditioning on data without labels is a fault of the recipe, with its key and mend."""
    with pytest.raises(RecipeError, match="true, but the data have no labels") as caught:
        small_unet(conditional=True)
    assert caught.value.faults[0].key == f"{PATH}.conditional"
    assert "conditional = false" in caught.value.faults[0].fix


def test_label_dropout_replaces_labels_in_training_only():
    """With every label dropped, training equals the unlabelled output; evaluation does not."""
    net = small_unet(image_build(classes=10), conditional=True, label_dropout=1.0)
    x, level = sample(net)
    labels = torch.tensor([0, 1, 2, 3])
    unlabelled = net(x, level).output
    assert not torch.allclose(net(x, level, labels).output, unlabelled)
    assert torch.equal(net.train()(x, level, labels).output, unlabelled)


def test_dropout_acts_in_training_only(make):
    """Two forwards differ in train mode and agree in eval mode."""
    net = make(dropout=0.5)
    x, level = sample(net)
    assert torch.equal(net(x, level).output, net(x, level).output)
    net.train()
    assert not torch.equal(net(x, level).output, net(x, level).output)


def test_unet_refuses_points():
    """Points are sent to the MLP."""
    with pytest.raises(
        RecipeError, match=r"needs images \(C, H, W\), the data have shape \[3\]"
    ) as caught:
        small_unet(point_build())
    assert caught.value.faults[0].fix == 'write use = "mlp" for points'


@pytest.mark.parametrize(
    ("settings", "double"),
    [
        ({"attention_kernel": "math"}, True),
        ({"attention_kernel": "fused"}, False),
        ({"attention": ()}, True),
    ],
)
def test_unet_tells_the_truth_about_second_derivatives(settings, double):
    """`supports_double_backward` is True exactly where a gradient of a gradient works."""
    net = small_unet(**settings)
    assert net.supports_double_backward is double
    x, level = sample(net)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, level).output.square().sum(), x, create_graph=True)
    if double:
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        assert second.isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="derivative"):
            torch.autograd.grad(gradient.square().sum(), x)


def test_attention_kernels_agree():
    """Fused and plain attention are the same function."""
    fused, plain = small_unet(attention_kernel="fused"), small_unet(attention_kernel="math")
    x, level = sample(fused)
    torch.testing.assert_close(fused(x, level).output, plain(x, level).output, rtol=1e-4, atol=1e-5)


def test_gradients_are_right_in_float64():
    """Automatic gradients of the whole U-Net equal finite differences."""
    net = small_unet(channels=4, attention_kernel="math").double()
    x, level = (value.double() for value in sample(net, 1))
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value(inner):
        return (net(inner, level).output * weight).sum()

    assert net(x, level).output.dtype == torch.float64
    assert torch.autograd.gradcheck(value, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ({}, False),
        ({"dropout": 0.1}, True),
        ({"label_dropout": 0.1}, False),
        ({"conditional": True}, False),
        ({"conditional": True, "label_dropout": 0.1}, True),
    ],
)
def test_draws_random_says_when_a_forward_draws(make, settings, draws):
    """It is True exactly where a forward in train mode moves the global generator."""
    net = make(conditional_build(make), **settings).train()
    assert net.draws_random is draws
    x, level = sample(net)
    before = torch.get_rng_state()
    net(x, level, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(before, torch.get_rng_state()) is not draws


def test_checkpointing_changes_no_number():
    """Recomputed blocks give the same output and gradients, with dropout too."""
    results = []
    for checkpoint_blocks in (False, True):
        net = small_unet(dropout=0.3, checkpoint_blocks=checkpoint_blocks).train()
        x, level = sample(net)
        torch.manual_seed(3)
        net(x, level).output.square().sum().backward()
        results.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_channels_last_and_autocast_keep_the_output(make):
    """bf16 autocast gives fp32 outputs near those of fp32; the memory format changes little."""
    net = make()
    x, level = sample(net)
    plain = net(x, level).output
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, level).output
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.1)
    if x.dim() == 4:
        last = net.to(memory_format=torch.channels_last)(
            x.to(memory_format=torch.channels_last), level
        ).output
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)


def test_backbones_compile_to_one_graph(make):
    """No graph break, with taps, labels absent, and for an early stop."""
    net = make()
    x, level = sample(net)
    names = tuple(net.taps)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    out = compiled(x, level, taps=names[:1])
    torch.testing.assert_close(out.output, net(x, level).output)
    early = compiled(x, level, taps=names[:2], stop_at=names[1])
    assert list(early.features) == list(names[:2])


def test_block_shapes_mirror_the_encoder():
    """Every decoder block reads a skip of its own size and the widths chain."""
    shapes = block_shapes((9, 8), [8, 16, 24], 2)
    skips, width = [], 8
    for shape in shapes:
        if shape.skip:
            skip = skips.pop()
            assert skip.size == shape.size
            width += skip.outer
        assert shape.inner == width
        width = shape.outer
        if shape.name.startswith("down"):
            skips.append(shape)
    assert not skips
    assert [s.name for s in shapes][-2:] == ["up.0.0", "up.0.1"]
    assert shapes[-1].size == (9, 8)


@pytest.mark.parametrize("channels", [4, 6, 8, 30, 32, 100, 256])
def test_group_norm_divides_any_width(channels):
    """Groups divide the channels and hold at least 4 (or all)."""
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0
    assert channels // norm.num_groups >= 4


def test_sinusoidal_equals_its_formula():
    """Features are cos(p w_k), then sin(p w_k), with w_k = 10000^(-k / half)."""
    position = torch.tensor([0.0, 1.5, 1000.0], dtype=torch.float64)
    features = sinusoidal(position, 6)
    rates = 10_000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    torch.testing.assert_close(features[:, :3], (position[:, None] * rates).cos())
    torch.testing.assert_close(features[:, 3:], (position[:, None] * rates).sin())


def test_mlp_classifies_images_without_a_noise_level():
    """With `outputs` the MLP flattens images and gives logits."""
    net = small_mlp(image_build(), outputs=10)
    x, _ = sample(net)
    assert net(x).output.shape == (4, 10)


def test_mlp_denoises_images_in_their_shape():
    """Without `outputs` flattened images get their shape back."""
    net = small_mlp(image_build((2, 4, 4)), fourier=2)
    x, level = sample(net)
    assert net(x, level).output.shape == x.shape


def test_a_variance_head_changes_nothing_else(make):
    """Weights and outputs are those of the network without it, bit for bit; it starts at zero."""
    plain, both = make(), make(learn_sigma=True)
    names = [{name for name, _ in net.named_parameters()} for net in (plain, both)]
    assert names[1] - names[0] == {"variance.weight", "variance.bias"} == set(both.added)
    both.load_state_dict(plain.state_dict(), strict=False)
    x, level = sample(plain)
    found = both(x, level)
    assert torch.equal(found.output, plain(x, level).output)
    assert plain(x, level).variance is None
    assert plain.added == ()
    assert found.variance.shape == x.shape
    assert found.variance.any()
    assert both(x, level, stop_at=next(iter(both.taps))).variance is None


@pytest.mark.parametrize("cls", [MLP, UNet])
def test_a_variance_head_starts_in_the_middle_of_its_range(cls):
    """At zero, and draws nothing before the other layers do."""
    build = point_build() if cls is MLP else image_build()
    torch.manual_seed(3)
    plain = cls(cls.Settings(), build)
    torch.manual_seed(3)
    both = cls(cls.Settings(learn_sigma=True), build)
    x, level = sample(both)
    assert not both(x, level).variance.any()
    for name, weight in plain.state_dict().items():
        assert torch.equal(both.state_dict()[name], weight), name


def test_variance_of_a_half_precision_forward_is_in_fp32(make):
    """As the output is."""
    net = make(learn_sigma=True)
    x, level = sample(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(x, level)
    assert found.variance.dtype == found.output.dtype == torch.float32
