"""`timm:<name>`: the networks are timm's own, read tap by tap."""

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from advdiff_backbones.timm_models import TimmFamily
from helpers_nets import PATH, check_taps_of, image_build, lively, picture
from safetensors.torch import save_file

from advdiff_core.errors import DataError, RecipeError

MODELS = {
    "test_vit": {"patch_size": 8},
    "test_vit3": {"patch_size": 8},
    "test_resnet": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "test_maxvit": {"image_size": 64},
}

# The normalisation is one multiplication and addition here, and a division in the comparison.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def settings_of(name, **settings):
    """Settings of a model of timm."""
    return TimmFamily.settings_type(name)(**settings)


def made(name, build=None, **settings):
    """A model of timm as a backbone, its first weights fixed."""
    torch.manual_seed(0)
    return TimmFamily(settings_of(name, **settings), build or image_build())


def entering(net, x):
    """Images on the [0, 1] scale as timm's own transforms would give them to the model."""
    config = net.net.pretrained_cfg
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    size = net.settings.image_size
    if size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (x - mean) / std


@pytest.mark.parametrize("name", MODELS)
def test_taps_are_what_timm_itself_gives(name):
    """Blocks, features, pooled features and logits equal timm's own methods on the same weights."""
    net = lively(made(name, **MODELS[name]))
    x = picture(net)
    full = check_taps_of(net, x)
    inside, own = entering(net, x), net.net
    layout = "NCHW" if name not in ("test_vit", "test_vit3") else "NLC"
    found = own.forward_intermediates(inside, output_fmt=layout, intermediates_only=True)
    for n, feature in enumerate(found):
        torch.testing.assert_close(full.features[f"block.{n}"], feature, **CLOSE)
    last = own.forward_features(inside)
    torch.testing.assert_close(full.features["features"], last, **CLOSE)
    pooled = own.forward_head(last, pre_logits=True)
    torch.testing.assert_close(full.features["pooled"], pooled, **CLOSE)
    torch.testing.assert_close(full.output, own(inside), **CLOSE)
    torch.testing.assert_close(net(x).output, full.output, **CLOSE)


@pytest.mark.parametrize(("tap", "blocks"), [("block.1", 2), ("features", 6)])
def test_stopping_early_runs_no_later_layer(tap, blocks):
    """Stopped at a block no later one runs, stopped at the features the head does not."""
    net = made("test_vit").eval()
    assert len(net.net.blocks) == 6
    ran = []
    for part in (*net.net.blocks, net.net.head):
        part.register_forward_hook(lambda module, *_: ran.append(module))
    assert net(picture(net), taps=(tap,), stop_at=tap).output is None
    assert ran == list(net.net.blocks[:blocks])


def test_features_with_channels_last_are_turned():
    """Swin gives [B, H, W, C]; the tap is [B, C, H, W] like that of any convolutional network."""
    net = made("swin_s3_tiny_224", image_size=64).eval()
    x = picture(net, 1)
    found = net(x, taps=("features",)).features["features"]
    assert net.taps["features"].width == found.shape[1] == 768
    last = net.net.forward_features(entering(net, x))
    torch.testing.assert_close(found, last.permute(0, 3, 1, 2), **CLOSE)


def test_images_are_normalised_from_their_own_domain():
    """The same pictures in [0, 1] and in [-1, 1] give the same logits."""
    unit = lively(made("test_resnet"))
    signed = lively(made("test_resnet", image_build(domain=(-1.0, 1.0))))
    x = picture(unit)
    torch.testing.assert_close(signed(2 * x - 1).output, unit(x).output, **CLOSE)


def test_other_constants_and_grey_images_are_taken():
    """Mean and std can be set; grey images get the average of the model's own constants."""
    net = lively(made("test_resnet", mean=[0.5], std=[0.25]))
    x = picture(net)
    torch.testing.assert_close(net(x).output, net.net((x - 0.5) / 0.25), **CLOSE)
    grey = lively(made("test_resnet", image_build((1, 32, 32))))
    x = picture(grey)
    known = grey.net.pretrained_cfg
    inside = (x - sum(known["mean"]) / 3) / (sum(known["std"]) / 3)
    torch.testing.assert_close(grey(x).output, grey.net(inside), **CLOSE)


@pytest.mark.parametrize(
    ("name", "settings", "pixels", "tap", "width", "size", "millions"),
    [
        # The transformer of DRA, appendix B: 2 x 2 patches of a CIFAR image.
        ("vit_base_patch16_224", {"patch_size": 2}, 32, "block.11", 768, (256,), 85.27),
        ("vit_base_patch16_dinov3.lvd1689m", {}, 224, "block.11", 768, (196,), 85.65),
        ("vit_small_patch14_dinov2.lvd142m", {}, 224, "block.11", 384, (256,), 21.63),
        ("convnext_base.dinov3_lvd1689m", {}, 224, "block.3", 1024, (7, 7), 87.58),
    ],
)
def test_the_networks_of_the_papers_are_settings(
    name, settings, pixels, tap, width, size, millions
):
    """ViT-B/2 at 32 pixels, and the DINO networks: taps and millions of parameters with 10 logits.

    The counts are those of a plain count by hand: blocks, embeddings, norms and head.
    """
    with torch.device("meta"):
        net = made(name, image_build((3, pixels, pixels)), **settings)
    info = net.taps[tap]
    assert (info.width, info.size) == (width, size)
    assert net.taps["pooled"].width in (width, 2 * width)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


def test_logits_follow_the_data_or_the_setting_or_the_model():
    """As many as are asked for, else one per class, else those timm has."""
    assert made("test_resnet").net.num_classes == 10
    assert made("test_resnet", outputs=7).net.num_classes == 7
    assert made("test_resnet", image_build(classes=0)).net.num_classes == 1000


def test_dropout_and_stochastic_depth_are_declared():
    """`draws_random` is True with dropout of features or branches, and False without."""
    assert not made("test_resnet").draws_random
    assert made("test_resnet", dropout=0.1).draws_random
    assert made("test_vit", drop_path=0.1).draws_random


def test_second_derivatives_are_declared():
    """Attention by the fused kernel has none, plain attention and convolutions have."""
    assert not made("test_vit").supports_double_backward
    assert made("test_vit", attention_kernel="math").supports_double_backward
    assert made("test_resnet").supports_double_backward


def test_checkpointing_changes_no_gradient():
    """Recomputed blocks give the gradients of kept ones."""
    kept = lively(made("test_vit", attention_kernel="math")).train()
    again = lively(made("test_vit", attention_kernel="math", checkpoint_blocks=True)).train()
    x = picture(kept)
    gradients = []
    for net in (kept, again):
        net(x).output.square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert again.net.grad_checkpointing
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_weights_come_from_a_file(tmp_path):
    """A safetensors file with timm's names gives the network that was saved."""
    saved = lively(made("test_resnet"))
    path = tmp_path / "model.safetensors"
    save_file(saved.net.state_dict(), path)
    loaded = made("test_resnet", weights=path, outputs=10).eval()
    x = picture(saved)
    # The file has 10 classes and timm's model 1000: its head is made anew, the rest is as saved.
    wanted = saved(x, taps=("features",)).features["features"]
    assert torch.equal(loaded(x, taps=("features",)).features["features"], wanted)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("vit_bas_patch16_224", "no model 'vit_bas_patch16_224'; did you mean 'vit_base_patch16_"),
        ("resnet18.tv_in1", "no weights 'tv_in1' for 'resnet18'; there are tv_in1k"),
        ("", "no model ''"),
    ],
)
def test_unknown_models_are_refused_with_the_nearest(variant, words):
    """A misspelt model or tag is named together with the nearest one."""
    with pytest.raises(ValueError, match="timm has") as caught:
        TimmFamily.settings_type(variant)
    assert words in str(caught.value)


def test_settings_that_a_model_does_not_take_are_refused():
    """The complaint of timm is passed on in one line, with the place in the recipe."""
    with pytest.raises(RecipeError) as caught:
        made("test_resnet", patch_size=4)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", f"{PATH}.use")
    assert "timm:test_resnet cannot be built so" in fault.message
    assert "patch_size" in fault.message


def test_sizes_that_patches_do_not_divide_are_refused():
    """33 pixels in patches of 16: refused before anything runs, with the keys to set."""
    with pytest.raises(RecipeError, match="should be divisible by patch size") as caught:
        made("test_vit", image_size=33)
    assert "image_size" in caught.value.faults[0].fix


def test_missing_network_names_where_to_put_the_file(monkeypatch, tmp_path):
    """Without a network and a cache one line names the model, its home and the key for a file."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"no weights for timm:test_vit") as caught:
        made("test_vit", pretrained=True)
    assert (caught.value.code, caught.value.where) == ("D01", PATH)
    assert 'write weights = "FILE.safetensors"' in caught.value.fix
    assert "timm/test_vit" in caught.value.fix
    assert len(caught.value.lines()) == 1


def test_a_model_that_brings_weights_is_not_warned_of():
    """Frozen and untrained is what an encoder is; only random weights are odd."""
    assert not settings_of("test_vit").brings_weights
    assert settings_of("test_vit", pretrained=True).brings_weights
    assert settings_of("test_vit", weights="a.safetensors").brings_weights


def test_models_without_weights_say_so():
    """A model for which timm has no weights is refused when they are asked for."""
    assert not timm.get_pretrained_cfg("starnet_s100").has_weights
    with pytest.raises((DataError, RecipeError), match="starnet_s100"):
        made("starnet_s100", pretrained=True)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.pt", b"", "model.pt is no .safetensors file; other formats can run code"),
        ("absent.safetensors", None, "there is no file"),
        ("broken.safetensors", b"\x00" * 20, "no weights for timm:test_resnet"),
    ],
)
def test_bad_files_of_weights_are_refused(tmp_path, file, content, words):
    """Pickles, absent and damaged files are refused in one line."""
    path = tmp_path / file
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        made("test_resnet", weights=path)
    assert caught.value.code == "D01"
    assert words in str(caught.value)


def test_a_file_that_lacks_tensors_is_refused(tmp_path):
    """S12: timm would load the rest and leave these random; a missing head is no fault."""
    state = made("test_resnet").net.state_dict()
    head = {name: t for name, t in state.items() if not name.startswith("fc.")}
    save_file(head, tmp_path / "headless.safetensors")
    made("test_resnet", weights=tmp_path / "headless.safetensors", outputs=10)
    short = {name: t for name, t in head.items() if not name.startswith("layer3.")}
    save_file(short, tmp_path / "short.safetensors")
    with pytest.raises(DataError, match=r"lacks \d+ of \d+ tensors, first layer3") as caught:
        made("test_resnet", weights=tmp_path / "short.safetensors", outputs=10)
    assert caught.value.code == "S12"
    assert caught.value.where.endswith(".weights")


def test_plain_weights_are_translated():
    """Names as the library writes them, and as a checkpoint of advdiff does, load strictly."""
    net, other = made("test_resnet"), made("test_resnet")
    other.load_state_dict(net.translate(net.net.state_dict()))
    other.load_state_dict(net.translate(net.state_dict()))
