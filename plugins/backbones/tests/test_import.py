"""`advdiff import` for these networks: files as their authors write them, and real ones."""

from __future__ import annotations

import io
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from advdiff_backbones.adm_unet import ADMUNet
from advdiff_backbones.ddpmpp_unet import DDPMppUNet
from advdiff_backbones.dit import DiT
from advdiff_backbones.wide_resnet import WideResNet
from helpers_nets import image_build, lively
from safetensors.torch import load_file, save_file
from torch import nn

from advdiff_core.cli import main


@pytest.fixture
def importing(capsys, tmp_path, monkeypatch):
    """Run `advdiff import` in an empty folder; gives the facts, and the weights it wrote."""
    monkeypatch.chdir(tmp_path)

    def run(file, *args, out="out"):
        code = main(["import", str(file), *map(str, args), "--out", out, "--json"])
        printed = capsys.readouterr()
        assert (code, printed.err) == (0, "")
        return json.loads(printed.out), load_file(tmp_path / out / "model.safetensors")

    return run


def torch_file(path: Path, value, *, legacy=False):
    """A file of `torch.save`."""
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(data.getvalue())
    return path


def same(found, wanted):
    """Names and tensors are equal to the bit."""
    assert set(found) == set(wanted)
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


class Snapshot(nn.Module):
    """A part of a network that pickles as EDM's do: with source code that loading would run."""

    def __reduce__(self):
        """Class name, source and state in one dict."""
        source = "raise SystemError('the source of a checkpoint was run')"
        meta = {"type": "class", "class_name": "SongUNet", "module_src": source, "version": 6}
        return sys.modules["torch_utils.persistence"].rebuild, ({**meta, "state": vars(self)},)


def rebuild(meta):
    """Stands for NVIDIA's function of another name."""
    raise SystemError(meta["module_src"])


@pytest.fixture
def nvidia(monkeypatch):
    """Modules of the original program, as far as pickling looks for them."""
    rebuild.__module__ = "torch_utils.persistence"
    rebuild.__qualname__ = rebuild.__name__ = "_reconstruct_persistent_obj"
    module = types.ModuleType("torch_utils.persistence")
    module.rebuild = module._reconstruct_persistent_obj = rebuild
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def snapshot_of(net):
    """The parts of a network as EDM's objects, by their names."""
    copy = Snapshot()
    for name, part in net.named_children():
        copy.add_module(name, snapshot_of(part))
    for name, tensor in net.named_parameters(recurse=False):
        copy.register_parameter(name, nn.Parameter(tensor.detach().clone()))
    for name, tensor in net.named_buffers(recurse=False):
        copy.register_buffer(name, tensor.clone())
    return copy


def test_edm_snapshot_becomes_a_ddpmpp_unet(importing, tmp_path, nvidia):
    """The network inside EDM's preconditioner, class and augmentation labels included."""
    settings = {"channels": 16, "blocks": 1, "channel_mult": (1, 2), "augment_dim": 9}
    config = DDPMppUNet.Settings(**settings, conditional=True)
    net = lively(DDPMppUNet(config, image_build(domain=(-1.0, 1.0))))
    outer = Snapshot()
    outer.add_module("model", snapshot_of(net))
    file = tmp_path / "network-snapshot-000200.pkl"
    file.write_bytes(pickle.dumps({"ema": outer, "augment_pipe": Snapshot()}))
    facts, found = importing(
        file, "--use", "ddpmpp-unet", "--classes", 10, "-s", "parametrization=edm",
        "-s", "channels=16", "-s", "blocks=1", "-s", "channel_mult=[1, 2]", "-s", "augment_dim=9",
        "-s", "conditional=true",
    )  # fmt: skip
    assert (facts["source"]["key"], facts["fit"]["prefix"]) == ("ema", "model.")
    assert facts["c_noise"] == [-1.55, 1.1]
    same(found, net.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    levels, labels = torch.tensor([-1.0, 0.5]), torch.tensor([3, 7])
    with torch.no_grad():
        golden = load_file(tmp_path / "out" / "golden.safetensors")
        again = net(golden["x"], golden["c_noise"], golden["labels"]).output
        assert net(x, levels, labels).output.isfinite().all()
    torch.testing.assert_close(again, golden["output"])


def test_dm_at_checkpoint_becomes_a_wide_resnet(importing, tmp_path):
    """Behind DataParallel and a normalising layer; the average is chosen by its key."""
    net = lively(WideResNet(WideResNet.Settings(depth=10, width=1), image_build()))
    state = {f"module.0.{name}": tensor for name, tensor in net.state_dict().items()}
    raw = {name: tensor + 1 for name, tensor in state.items()}
    value = {
        "model_state_dict": state, "unaveraged_model_state_dict": raw, "epoch": 400,
        "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    }  # fmt: skip
    file = torch_file(tmp_path / "weights-best.pt", value)
    facts, found = importing(
        file, "--use", "wide-resnet", "--classes", 10, "--domain", 0, 1, "-s", "depth=10",
        "-s", "width=1", "-s", "parametrization=none", "--key", "model_state_dict",
    )  # fmt: skip
    assert facts["fit"]["prefix"] == "module.0."
    assert facts["classifier"] is True
    same(found, net.state_dict())


def test_guided_diffusion_checkpoint_becomes_an_adm_unet(importing, tmp_path):
    """A plain state dict of torch.save before 1.6, half precision included."""
    config = ADMUNet.Settings(channels=32, channel_mult=(1, 2), blocks=1, learn_sigma=True)
    net = lively(ADMUNet(config, image_build(domain=(-1.0, 1.0))))
    state = {name: tensor.half() for name, tensor in net.state_dict().items()}
    file = torch_file(tmp_path / "64x64_diffusion.pt", state, legacy=True)
    facts, found = importing(
        file, "--use", "adm-unet", "-s", "channels=32", "-s", "channel_mult=[1, 2]",
        "-s", "blocks=1", "-s", "learn_sigma=true",
    )  # fmt: skip
    assert facts["source"]["format"] == "torch legacy"
    assert facts["dtypes"] == {"float16": len(state)}
    same(found, state)


def test_lightning_dit_checkpoint_becomes_a_dit(importing, tmp_path):
    """LightningDiT's options; its average, behind the module of torch.compile."""
    options = {"norm": "rms", "mlp": "swiglu", "rope": True, "conditional": True}
    config = DiT.Settings(patch=1, width=32, depth=2, heads=4, **options)
    net = lively(DiT(config, image_build((4, 8, 8), domain=(-1.0, 1.0))))
    state = {f"_orig_mod.{name}": tensor for name, tensor in net.state_dict().items()}
    file = torch_file(tmp_path / "lightningdit-xl.pt", {"ema": state, "config": {"lr": 2e-4}})
    args = ["patch=1", "width=32", "depth=2", "heads=4"]
    args += ["norm=rms", "mlp=swiglu", "rope=true", "conditional=true"]
    shape = ("--use", "dit", "--shape", "4x8x8", "--classes", 10)
    facts, found = importing(file, *shape, *(part for one in args for part in ("-s", one)))
    assert facts["fit"]["prefix"] == "_orig_mod."
    same(found, net.state_dict())


def test_timm_weights_go_inside_the_adapter(importing, tmp_path):
    """timm's own names become the adapter's, which begin with `net.`."""  # noqa: D403
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("test_vit", num_classes=10).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    facts, found = importing(
        "model.safetensors", "--use", "timm:test_vit", "--shape", "3x160x160", "--classes", 10
    )
    assert facts["fit"]["prefix"] == ""
    same(found, {f"net.{name}": tensor for name, tensor in net.state_dict().items()})


def test_diffusers_weights_go_inside_the_adapter(importing, tmp_path):
    """A folder of diffusers, in shards with an index."""
    diffusers = pytest.importorskip("diffusers")
    config = {
        "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": [8],
        "norm_num_groups": 4, "layers_per_block": 1, "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"], "add_attention": False,
    }  # fmt: skip
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**config)
    net.save_pretrained(tmp_path / "unet", max_shard_size="10KB")
    index = tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    pairs = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    facts, found = importing(
        index, "--use", "diffusers:UNet2DModel", "--shape", "3x8x8",
        "-s", f"config={{ {', '.join(pairs)} }}",
    )  # fmt: skip
    assert facts["source"]["format"] == "sharded safetensors"
    assert len(facts["source"]["shards"]) > 1
    same(found, {f"net.{name}": tensor for name, tensor in net.state_dict().items()})


REAL = {
    "cifar10_resnet20_standard": ("cifar-resnet",),
    "cifar10_resnet56_standard": ("cifar-resnet", "-s", "depth=56"),
    "cifar10_resnet2b_at_linf2": ("normless-resnet",),
    "cifar10_resnet4b_at_linf2": ("normless-resnet", "-s", "channels=16", "-s", "stages=2"),
    "mnist_smallcnn_trades_linf03": ("trades-cnn", "--shape", "1x28x28"),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_classifiers_are_imported(importing, real_data, name):
    """Every tensor of the published files, bit for bit."""
    file = real_data / "weights" / f"{name}.safetensors"
    facts, found = importing(file, "--use", *REAL[name], "--classes", 10, "--domain", 0, 1)
    wanted = load_file(file)
    counters = set(facts["fit"]["as_built"])
    assert all(one.endswith("num_batches_tracked") for one in counters)
    same({k: v for k, v in found.items() if k not in counters}, wanted)
    assert facts["classifier"] is True
