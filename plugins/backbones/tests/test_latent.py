"""The dataset `latent`: images through an autoencoder of diffusers, and pictures of latents."""

import json

import numpy as np
import pytest
import torch
from advdiff_backbones.latent import Latent
from diffusers import AutoencoderKL, UNet2DModel
from helpers_nets import PATH
from safetensors.torch import load_file

from advdiff_core.cli import main
from advdiff_core.errors import DataError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.dataset import Dataset
from advdiff_core.settings import Spec
from advdiff_core.types import Batch, DataInfo, Domain

VAE = {
    "block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "scaling_factor": 0.5, "shift_factor": 0.1,
}  # fmt: skip


class Pictures(Dataset):
    """Twelve random pictures of three classes in [0, 1]; counts its reads."""

    shape = (3, 8, 8)
    reads = 0

    @property
    def info(self):
        """What there is."""
        return DataInfo(shape=self.shape, count=12, domain=Domain(0.0, 1.0), classes=3)

    def batch(self, indices):
        """Pictures by index."""
        self.reads += len(indices)
        generator = torch.Generator().manual_seed(0)
        return Batch(torch.rand(12, *self.shape, generator=generator)[indices], indices % 3)

    def fingerprint(self):
        """Constant."""
        return "pictures"


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A folder with a tiny autoencoder of random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    return folder


def made(folder, inner=None, **settings):
    """The dataset over `Pictures`."""
    spec = Spec(kind="dataset", use="pictures", settings=Pictures.Settings(), component=Pictures)
    inner = inner or Pictures(None, Build())
    chosen = Latent.Settings(
        images=spec, **{"vae": str(folder), "subfolder": "vae", "device": "cpu", **settings}
    )
    return Latent(chosen, Build(path=PATH, seed=7, make=lambda _: inner))


def test_latents_are_scaled_means_of_the_code(vae):
    """Each is (mean - shift) * scale of the image in [-1, 1], with the label of the image."""
    data = made(vae)
    assert data.info == DataInfo(shape=(4, 4, 4), count=12, classes=3)
    assert data.pictures == DataInfo(shape=(3, 8, 8), count=12, domain=Domain(-1, 1), classes=3)
    indices = torch.tensor([5, 0, 7])
    x, y = data.batch(indices)
    own = AutoencoderKL.from_pretrained(vae, subfolder="vae").eval()
    images = 2 * Pictures(None, Build()).batch(indices).x - 1
    with torch.no_grad():
        code = own.encode(images).latent_dist.mean
    torch.testing.assert_close(x, (code - 0.1) * 0.5, rtol=1e-4, atol=1e-5)
    assert y.tolist() == [2, 0, 1]


def test_pictures_of_latents_are_what_the_decoder_makes(vae):
    """Scaling is undone before decoding, and the result lies in [-1, 1]."""
    data = made(vae)
    x = data.batch(torch.arange(3)).x
    own = AutoencoderKL.from_pretrained(vae, subfolder="vae").eval()
    with torch.no_grad():
        wanted = own.decode(x / 0.5 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(data.decode(x), wanted, rtol=1e-4, atol=1e-5)
    assert float(data.decode(1e4 * x).abs().max()) == 1.0


def test_originals_are_the_images_themselves(vae):
    """What metrics call real never went through the autoencoder."""
    indices = torch.tensor([3, 1])
    images = Pictures(None, Build()).batch(indices).x
    torch.testing.assert_close(made(vae).originals(indices), 2 * images - 1)


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_a_latent_depends_on_its_index_alone(vae, posterior):
    """To the last bit, whatever the batch it is read in."""
    data = made(vae, posterior=posterior)
    together = data.batch(torch.arange(12)).x
    for index in (0, 11, 4):
        assert torch.equal(data.batch(torch.tensor([index])).x[0], together[index])


def test_samples_of_the_code_have_its_spread(vae):
    """Standardised by the code's mean and deviation they are the keyed normal numbers."""
    mean, sample = (
        made(vae, posterior=rule).batch(torch.arange(12)).x for rule in ("mean", "sample")
    )
    own = AutoencoderKL.from_pretrained(vae, subfolder="vae").eval()
    with torch.no_grad():
        std = own.encode(made(vae).originals(torch.arange(12))).latent_dist.std
    noise = (sample - mean) / (0.5 * std)
    assert float(noise.mean()) == pytest.approx(0, abs=0.15)
    assert float(noise.std()) == pytest.approx(1, abs=0.15)
    assert made(vae).fingerprint() != made(vae, posterior="sample").fingerprint()


def test_statistics_per_channel_are_used_where_the_autoencoder_has_them(tmp_path):
    """With latents_mean and latents_std each channel is standardised, and decoding undoes it."""
    torch.manual_seed(0)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    kinds = {**VAE, "latents_mean": mean, "latents_std": std, "scaling_factor": 1.0}
    AutoencoderKL(**kinds).save_pretrained(tmp_path)
    data = made(tmp_path, subfolder="")
    code = made(tmp_path, subfolder="")._moments(data.originals(torch.tensor([0]))[0])[0]
    found = data.batch(torch.tensor([0])).x[0]
    for channel in range(4):
        wanted = (code[channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(found[channel], wanted)
    torch.testing.assert_close(data._unscaled(found), code)


def test_the_scale_can_be_set(vae):
    """A recipe's scale takes the place of the autoencoder's."""
    plain, scaled = (made(vae, scale=s).batch(torch.arange(2)).x for s in (0.5, 2.0))
    torch.testing.assert_close(scaled, 4 * plain)


def test_kept_latents_are_those_that_were_encoded(vae, tmp_path):
    """The cache gives the same bits, is written once, and is read by the next run."""
    indices = torch.tensor([2, 9, 2])
    wanted = made(vae).batch(indices)
    first = made(vae, cache=tmp_path / "kept")
    assert torch.equal(first.batch(indices).x, wanted.x)
    (file,) = (tmp_path / "kept").iterdir()
    written = file.stat().st_mtime_ns
    inner = Pictures(None, Build())
    second = made(vae, inner, cache=tmp_path / "kept")
    assert torch.equal(second.batch(indices).x, wanted.x)
    assert torch.equal(second.batch(indices).y, wanted.y)
    assert inner.reads == 6
    assert file.stat().st_mtime_ns == written
    sampled = made(vae, cache=tmp_path / "kept", posterior="sample").batch(indices).x
    assert torch.equal(sampled, made(vae, posterior="sample").batch(indices).x)


def test_a_damaged_cache_is_named(vae, tmp_path):
    """The file is named, with the mend."""
    data = made(vae, cache=tmp_path)
    data.batch(torch.tensor([0]))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError) as caught:
        made(vae, cache=tmp_path).batch(torch.tensor([0]))
    assert (caught.value.code, caught.value.where) == ("D02", str(file))
    assert "delete it" in caught.value.fix


def test_other_weights_make_other_data(vae, tmp_path):
    """The fingerprint knows the autoencoder's weights."""
    torch.manual_seed(1)
    AutoencoderKL(**VAE).save_pretrained(tmp_path)
    assert made(vae).fingerprint() == made(vae).fingerprint()
    assert made(vae).fingerprint() != made(tmp_path, subfolder="").fingerprint()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 8, 8), "encodes images of 3 channels with a range, the data have shape [1, 8, 8]"),
        ((3, 9, 8), "divides sizes by 2, the data have shape [3, 9, 8]"),
    ],
)
def test_images_the_autoencoder_cannot_take_are_refused(vae, shape, words):
    """The message gives what it takes and what was found."""
    inner = Pictures(None, Build())
    inner.shape = shape
    with pytest.raises(RecipeError) as caught:
        made(vae, inner)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", f"{PATH}.images")
    assert words in fault.message


def test_an_absent_autoencoder_is_named(tmp_path):
    """An empty folder: the message names it and says what belongs there."""
    with pytest.raises(DataError, match="cannot read the folder") as caught:
        made(tmp_path)
    assert caught.value.where == f"{PATH}.vae"
    assert "config.json" in caught.value.fix


RECIPE = """
advdiff = 1
[run]
seed = 3
images = 16
batch = 4
device = "cpu"
precision = "fp32"
[data]
use = "latent"
images = { use = "tensor-file", path = "data.npz", images = "x", labels = "y" }
vae = "vae/vae"
[models.student]
use = "diffusers:UNet2DModel"
path = "unet"
conditional = true
lora = { rank = 2 }
[terms.denoise]
use = "denoise"
[players.student]
ema = []
[sample]
steps = 2
images = 4
[evaluate]
num = 12
metrics = [{ use = "frechet" }, { use = "residual-noise" }]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, vae):
    """A run that trains adapters on latents."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "vae").symlink_to(vae)
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 255, (12, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", x=pixels, y=np.arange(12) % 3)
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=4, in_channels=4, out_channels=4, num_class_embeds=4, norm_num_groups=4,
        block_out_channels=(8,), layers_per_block=1, attention_head_dim=4,
        down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",),
    ).save_pretrained(folder / "unet")  # fmt: skip
    (folder / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "recipe.toml"]) == 0
    return folder


def test_adapters_on_latents_train_and_nothing_else_moves(run, monkeypatch):
    """After four steps the adapters have moved and the network is as it was loaded."""
    monkeypatch.chdir(run)
    from advdiff_core.engine.api import open_trained

    state = open_trained(run / "runs/00000-recipe").experiment.scene.roles["student"].module
    loaded = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    moved = 0
    for name, tensor in state.net.state_dict().items():
        if "lora_B" in name:
            moved += int(bool(tensor.any()))
        elif "lora_" not in name:
            assert torch.equal(tensor, loaded[name.replace(".base_layer", "")]), name
    assert moved > 0


def test_samples_are_latents_and_their_pictures_are_decoded(run, monkeypatch, capsys):
    """The file holds latents; the grid and the preview are pictures of the images' size."""
    monkeypatch.chdir(run)
    assert main(["sample", "runs/00000-recipe", "--num", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [4, 4, 4, 4]
    from advdiff_core.engine.api import open_trained
    from advdiff_core.engine.preview import preview

    experiment = open_trained(run / "runs/00000-recipe").experiment
    rows = preview(experiment)
    assert rows["real"].shape[1:] == (3, 8, 8)
    assert rows["samples"].shape == (4, 3, 8, 8)
    assert float(rows["samples"].abs().max()) <= 1


def test_metrics_of_images_see_pictures_and_those_of_vectors_latents(run, monkeypatch):
    """`frechet` measures latents; a metric that says nothing gets images, the real ones as real."""
    monkeypatch.chdir(run)
    from advdiff_core.engine.api import open_trained
    from advdiff_core.engine.evaluate import evaluate
    from advdiff_core.metrics import frechet, noise

    seen = {}
    for cls in (frechet.Frechet, noise.ResidualNoise):
        monkeypatch.setattr(
            cls, "compute", lambda self, found: seen.update({type(self): found}) or {}
        )
    experiment = open_trained(run / "runs/00000-recipe").experiment
    evaluate(experiment, run, 16)
    plain, shown = seen[frechet.Frechet], seen[noise.ResidualNoise]
    assert plain.samples.shape == (12, 4, 4, 4)
    assert plain.info.domain is None
    assert shown.samples.shape == (12, 3, 8, 8)
    assert shown.info == experiment.source.pictures
    torch.testing.assert_close(shown.samples, experiment.source.decode(plain.samples))
    with np.load(run / "data.npz") as held:
        torch.testing.assert_close(shown.clean, torch.from_numpy(held["x"]).float() / 127.5 - 1)
    assert torch.equal(shown.data, shown.clean)


def test_a_new_autoencoder_depends_on_the_seed_alone(vae):
    """`config` in place of `vae`: untrained weights, the same at each build, other ones by seed."""
    config = {**VAE, "down_block_types": ("DownEncoderBlock2D",) * 2}
    data, again = (made(vae, vae="", subfolder="", config=config) for _ in range(2))
    indices = torch.arange(3)
    assert data.info == DataInfo(shape=(4, 4, 4), count=12, classes=3)
    assert torch.equal(data.batch(indices).x, again.batch(indices).x)
    assert data.fingerprint() == again.fingerprint()
    assert data.fingerprint() != made(vae).fingerprint()


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"config": VAE}, "vae", "wanted either vae or config, found both"),
        ({"vae": ""}, "vae", "wanted either vae or config, found neither"),
        (
            {"vae": "", "config": {"block_out_channels": (4, 8), "wings": 2}}, "config",
            "AutoencoderKL refuses these arguments: ",
        ),
    ],
)  # fmt: skip
def test_an_autoencoder_that_cannot_be_is_refused(vae, keys, key, words):
    """R10 for both, for neither, and for arguments that diffusers does not know."""
    with pytest.raises(RecipeError) as caught:
        made(vae, **keys)
    (fault,) = caught.value.faults
    assert (fault.code, fault.key) == ("R10", f"{PATH}.{key}")
    assert fault.message.startswith(words)
    assert fault.fix
