"""The classifiers against an independent reading, known sizes, and weights trained elsewhere."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from advdiff_backbones.classifier import Normalize
from advdiff_backbones.resnets import CifarResNet, NormlessResNet, PreActResNet18
from advdiff_backbones.small_cnn import TradesCNN
from advdiff_backbones.wide_resnet import WideResNet, same_padding
from helpers_nets import PATH, check_taps_of, image_build, lively, picture
from PIL import Image
from safetensors.torch import load_file

from advdiff_core.errors import ContractError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.types import DataInfo

SMALL = {
    "wide-resnet": (WideResNet, {"depth": 16, "width": 2}, (3, 32, 32)),
    "wide-resnet-odd": (WideResNet, {"depth": 10, "width": 1, "activation": "relu"}, (3, 15, 9)),
    "cifar-resnet": (CifarResNet, {"depth": 20}, (3, 32, 32)),
    "preact-resnet18": (PreActResNet18, {"channels": 8}, (3, 32, 32)),
    "preact-without-norm": (PreActResNet18, {"channels": 4, "final_norm": False}, (3, 17, 16)),
    "resnet-2b": (NormlessResNet, {}, (3, 32, 32)),
    "resnet-4b": (NormlessResNet, {"channels": 16, "stages": 2}, (3, 32, 32)),
    "trades-cnn": (TradesCNN, {}, (1, 28, 28)),
    "trades-cnn-oblong": (TradesCNN, {"dropout": 0.0}, (3, 16, 21)),
}


def made(cls, settings=None, build=None):
    """A network with torch's own initialisation under a fixed seed."""
    torch.manual_seed(0)
    return cls(cls.Settings(**(settings or {})), build or image_build())


def num_parameters(net):
    """Trainable numbers in a network."""
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("case", SMALL)
def test_taps_are_as_declared_and_stop_early(case):
    """Every tap has the declared shape, in forward order, also when nothing later runs."""
    cls, settings, shape = SMALL[case]
    net = lively(made(cls, settings, image_build(shape)))
    full = check_taps_of(net, picture(net))
    assert full.output.shape == (2, 10)


@pytest.mark.parametrize("case", SMALL)
def test_the_last_tap_is_what_the_last_layer_reads(case):
    """The features before the last layer give the logits by one linear map."""
    cls, settings, shape = SMALL[case]
    net = lively(made(cls, settings, image_build(shape)))
    last = list(net.taps)[-1]
    full = net(picture(net), taps=(last,))
    head = [part for part in net.modules() if isinstance(part, torch.nn.Linear)][-1]
    torch.testing.assert_close(full.output, head(full.features[last]))


def functional_wide_resnet(state, x, *, blocks, size):
    """WRN of Gowal et al. (2020) written down from its formulas, in the dtype of `x`."""

    def norm(name, h):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        unit = (h - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return unit * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    mean = torch.tensor([0.4914, 0.4822, 0.4465], dtype=x.dtype)[:, None, None]
    std = torch.tensor([0.2471, 0.2435, 0.2616], dtype=x.dtype)[:, None, None]
    h = F.conv2d((x - mean) / std, state["init_conv.weight"], padding=1)
    for group in range(3):
        for n in range(blocks):
            name = f"layer.{group}.block.{n}"
            active = norm(f"{name}.batchnorm_0", h)
            active = active * torch.sigmoid(active)
            if group and not n:
                padded, stride = F.pad(active, (0, 1, 0, 1)), 2
            else:
                padded, stride = F.pad(active, (1, 1, 1, 1)), 1
            inside = F.conv2d(padded, state[f"{name}.conv_0.weight"], stride=stride)
            inside = norm(f"{name}.batchnorm_1", inside)
            inside = inside * torch.sigmoid(inside)
            inside = F.conv2d(inside, state[f"{name}.conv_1.weight"], padding=1)
            if n == 0:
                h = F.conv2d(active, state[f"{name}.shortcut.weight"], stride=stride)
            h = h + inside
    h = norm("batchnorm", h)
    pooled = F.avg_pool2d(h * torch.sigmoid(h), size // 4).flatten(1)
    return pooled, pooled @ state["logits.weight"].T + state["logits.bias"]


def test_wide_resnet_is_the_network_of_its_formulas():
    """In float64 output and pooled features equal a functional reading of the description."""
    net = lively(made(WideResNet, {"depth": 16, "width": 2})).double()
    x = picture(net, dtype=torch.float64)
    found = net(x, taps=("pooled",))
    pooled, logits = functional_wide_resnet(net.state_dict(), x, blocks=2, size=32)
    # The constants of the normalisation are kept in float32.
    torch.testing.assert_close(found.features["pooled"], pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.output, logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_gives_the_size_tensorflow_gives(size, stride):
    """A 3x3 convolution of the padded axis has ceil(n / stride) places."""
    x = torch.ones(1, 1, size, size)
    padded = same_padding(x, stride)
    assert F.max_pool2d(padded, 3, stride).shape[2] == -(-size // stride)
    before = int(padded[0, 0, :, 1].argmax())
    assert before == (0 if stride == 2 and size % 2 == 0 else 1)


@pytest.mark.parametrize(
    ("cls", "settings", "millions"),
    [
        (WideResNet, {"depth": 28, "width": 10}, 36.48),
        (WideResNet, {"depth": 34, "width": 10}, 46.16),
        (WideResNet, {"depth": 70, "width": 16}, 266.80),
        (PreActResNet18, {}, 11.17),
        (PreActResNet18, {"final_norm": False}, 11.17),
        (CifarResNet, {"depth": 20}, 0.27),
        (CifarResNet, {"depth": 32}, 0.46),
        (CifarResNet, {"depth": 44}, 0.66),
        (CifarResNet, {"depth": 56}, 0.85),
        (CifarResNet, {"depth": 110}, 1.73),
    ],
)
def test_sizes_are_those_of_the_papers(cls, settings, millions):
    """Millions of parameters, to two places, as published."""
    with torch.device("meta"):
        net = cls(cls.Settings(**settings), image_build())
    assert round(num_parameters(net) / 1e6, 2) == millions


def test_preact_resnet18_has_exactly_the_known_parameters():
    """11,171,146 without the last norm (the count of the widespread code), 1,024 more with it."""
    assert num_parameters(made(PreActResNet18, {"final_norm": False})) == 11_171_146
    assert num_parameters(made(PreActResNet18)) == 11_172_170


def test_wide_resnet_28_10_costs_what_is_known():
    """5.24 billion multiplications and additions, each pair one, for one image of 32 x 32."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = WideResNet(WideResNet.Settings(), image_build()).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 32, 32))
    assert round(counter.get_total_flops() / 2e9, 2) == 5.24


@pytest.mark.parametrize("domain", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-0.5, 0.5)])
def test_images_are_normalised_from_the_domain_of_the_data(domain):
    """A pixel that is 0.75 on the [0, 1] scale becomes (0.75 - mean) / std in any domain."""
    low, high = domain
    layer = Normalize(image_build((3, 2, 2), domain=domain), (0.5, 0.25, 0.0), (0.25,), 3)
    x = torch.full((1, 3, 2, 2), low + 0.75 * (high - low))
    wanted = torch.tensor([1.0, 2.0, 3.0])[None, :, None, None].expand(1, 3, 2, 2)
    torch.testing.assert_close(layer(x), wanted)
    assert not layer.state_dict()


@pytest.mark.parametrize("domain", [None, (float("-inf"), float("inf"))])
def test_values_without_a_domain_are_normalised_as_they_are(domain):
    """Latents have no range: mean and std then speak of the values themselves."""
    layer = Normalize(image_build((2, 2, 2), domain=domain), (1.0,), (2.0,), 2)
    torch.testing.assert_close(layer(torch.full((1, 2, 2, 2), 5.0)), torch.full((1, 2, 2, 2), 2.0))


def refused(cls, settings, build):
    """The one fault with which a network refuses what it is built from."""
    with pytest.raises(RecipeError) as caught:
        cls(cls.Settings(**settings), build)
    (fault,) = caught.value.faults
    assert fault.code == "R10"
    return fault


def test_points_are_refused():
    """A classifier of images says what it needs and what takes points."""
    build = Build(path=PATH, data=DataInfo(shape=(2,), count=4, classes=3))
    fault = refused(WideResNet, {}, build)
    assert fault.key == "models.student.use"
    assert fault.message == '"wide-resnet" needs images (C, H, W), the data have shape [2]'
    assert "mlp" in fault.fix


def test_images_that_are_too_small_are_refused():
    """The message names the least size and the shape found."""
    fault = refused(TradesCNN, {}, image_build((1, 8, 8)))
    assert fault.message == '"trades-cnn" needs 16 x 16 pixels, the data have shape [1, 8, 8]'
    assert fault.fix


def test_another_number_of_means_is_refused():
    """Three means for grey images: the message says how many there are and what to write."""
    fault = refused(WideResNet, {}, image_build((1, 28, 28)))
    assert fault.key == "models.student.mean"
    assert fault.message == "3 numbers, but the images have 1 channels"
    assert fault.fix == "write mean = [0.5] for all channels alike, or 1 numbers"


def test_data_without_classes_need_the_number_of_logits():
    """Without classes and without `outputs` nobody knows how many logits there are."""
    fault = refused(CifarResNet, {}, image_build(classes=0))
    assert fault.key == "models.student.outputs"
    assert "the data have no classes" in fault.message
    net = made(CifarResNet, {"outputs": 7}, image_build(classes=0))
    assert net(picture(net)).output.shape == (2, 7)


@pytest.mark.parametrize(
    ("cls", "depth", "words"),
    [
        (WideResNet, 30, r"depth: found 30, wanted 6 n \+ 4 .*; the nearest is 28"),
        (WideResNet, 4, r"depth: found 4, .*; the nearest is 10"),
        (CifarResNet, 18, r"depth: found 18, wanted 6 n \+ 2 .*; the nearest is 20"),
    ],
)
def test_depths_that_do_not_exist_are_refused(cls, depth, words):
    """The message states the rule and the nearest depth."""
    with pytest.raises(ValueError, match=words):
        cls.Settings(depth=depth)


def test_unknown_taps_are_refused():
    """The message names the nearest tap."""
    net = made(CifarResNet)
    with pytest.raises(ContractError, match=r"no tap 'layer1.9'; there are conv1, layer1.0") as e:
        net(picture(net), taps=("layer1.9",))
    assert "did you mean 'layer1." in e.value.fix


def test_only_dropout_draws():
    """The network of TRADES declares its dropout, the others draw nothing."""
    assert made(TradesCNN, {}, image_build((1, 28, 28))).draws_random
    assert not made(TradesCNN, {"dropout": 0.0}, image_build((1, 28, 28))).draws_random
    assert not made(WideResNet, {"depth": 10, "width": 1}).draws_random


def test_wide_resnet_starts_as_described():
    """Convolutions have variance 2 / (9 outer), norms are 1 and 0, the last bias is 0."""
    net = made(WideResNet, {"depth": 10, "width": 4})
    weight = net.layer[2].block[0].conv_1.weight
    assert float(weight.detach().var()) == pytest.approx(2 / (9 * 256), rel=0.02)
    assert not net.logits.bias.any()
    assert (net.batchnorm.weight == 1).all()
    assert net.batchnorm.momentum == 0.01


def cifar10_test(folder, count):
    """The first test images [N, 3, 32, 32] in [0, 1] and their labels."""
    data = folder / "data" / "cifar10"
    mosaic = np.asarray(Image.open(data / "test.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    y = np.load(data / "labels.npz")["y_test"][:count]
    return torch.from_numpy(tiles[:count].copy()).float() / 255, torch.from_numpy(y).long()


def mnist_test(folder, count):
    """The first test digits [N, 1, 28, 28] in [0, 1] and their labels."""
    with np.load(folder / "data" / "mnist.npz") as held:
        x, y = held["x_test"][:count, None], held["y_test"][:count]
    return torch.from_numpy(x).float() / 255, torch.from_numpy(y).long()


TRAINED = {
    "cifar10_resnet20_standard": (CifarResNet, {"depth": 20}, cifar10_test, 455),
    "cifar10_resnet56_standard": (CifarResNet, {"depth": 56}, cifar10_test, 470),
    "cifar10_resnet2b_at_linf2": (NormlessResNet, {}, cifar10_test, 345),
    "cifar10_resnet4b_at_linf2": (
        NormlessResNet, {"channels": 16, "stages": 2}, cifar10_test, 383,
    ),
    "mnist_smallcnn_trades_linf03": (TradesCNN, {}, mnist_test, 498),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("domain", [(0.0, 1.0), (-1.0, 1.0)])
def test_published_weights_load_and_classify_as_well_as_published(real_data, name, domain):
    """Strictly loaded, each classifies 500 test images as well as is known.

    The counts belong to runs over all 10,000 images, which gave the published accuracies exactly
    (91.73, 93.39, 69.25, 77.20 and 99.48 %). One image may fall otherwise on another processor.
    """
    cls, settings, data, wanted = TRAINED[name]
    x, y = data(real_data, 500)
    net = made(cls, settings, image_build(tuple(x.shape[1:]), domain=domain))
    net.load_state_dict(load_file(real_data / "weights" / f"{name}.safetensors"), strict=True)
    low, high = domain
    with torch.no_grad():
        logits = net.eval()(low + (high - low) * x).output
    assert abs(int((logits.argmax(1) == y).sum()) - wanted) <= 1
