"""The encoder of an autoencoder as a network: `vae-encoder`."""

import pytest
import torch
from advdiff_backbones.autoencoder import VAEEncoder
from advdiff_backbones.latent import Latent
from diffusers import AutoencoderKL
from helpers_nets import PATH
from test_latent import VAE, Pictures

from advdiff_core.errors import ContractError, DataError, RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import Spec
from advdiff_core.types import DataInfo, Domain

UNIT = DataInfo(shape=(3, 8, 8), count=12, domain=Domain(0.0, 1.0), classes=3)
STATISTICS = {
    "latents_mean": (0.1, -0.2, 0.3, 0.0), "latents_std": (2.0, 0.5, 1.0, 4.0),
    "scaling_factor": 1.0,
}  # fmt: skip


def made(data=UNIT, **settings):
    """The encoder in evaluation mode."""
    chosen = VAEEncoder.Settings(**{"config": VAE, **settings})
    return VAEEncoder(chosen, Build(path=PATH, seed=7, data=data)).eval()


def images(count=3):
    """Pictures in [0, 1]."""
    return Pictures(None, Build()).batch(torch.arange(count)).x


@pytest.mark.parametrize("statistics", [{}, STATISTICS], ids=["one scale", "per channel"])
def test_latents_are_those_of_the_dataset(statistics, tmp_path):
    """What `latent` trains a denoiser on is what its teacher sees: shift, scale, range."""
    torch.manual_seed(0)
    AutoencoderKL(**{**VAE, **statistics}).save_pretrained(tmp_path)
    net = made(config={}, vae=str(tmp_path))
    spec = Spec(kind="dataset", use="pictures", settings=Pictures.Settings(), component=Pictures)
    keys = Latent.Settings(images=spec, vae=str(tmp_path), device="cpu")
    data = Latent(keys, Build(path=PATH, make=lambda _: Pictures(None, Build())))
    out = net(images(), taps=("latent",))
    wanted = data.batch(torch.arange(3)).x
    torch.testing.assert_close(out.output, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.features["latent"], out.output)
    assert net.taps["latent"].width == 4
    assert net.taps["latent"].size == tuple(wanted.shape[2:]) == (4, 4)


def test_images_of_another_size_are_resized_first():
    """A grey picture stays grey whatever its size; the latent has the encoder's size."""
    small, large = (
        made(),
        made(DataInfo(shape=(3, 6, 6), count=1, domain=UNIT.domain), image_size=8),
    )
    grey = torch.full((2, 3, 6, 6), 0.4)
    wanted = small(torch.full((2, 3, 8, 8), 0.4)).output
    torch.testing.assert_close(large(grey).output, wanted)


def test_the_decoder_is_not_kept():
    """Neither its weights nor its time; whole checkpoints give their encoder."""
    net = made()
    whole = AutoencoderKL(**VAE)
    assert not [name for name in net.state_dict() if "decoder" in name or "post_quant" in name]
    assert set(net.translate(whole.state_dict())) == set(net.state_dict())


def test_stopping_at_the_latent_returns_no_output():
    """As the contract of backbones has it."""
    out = made()(images(), taps=("latent",), stop_at="latent")
    assert out.output is None
    assert out.features["latent"].shape == (3, 4, 4, 4)


def test_what_cannot_be_encoded_is_refused(tmp_path):
    """Other channels, sizes that do not divide, two autoencoders or none, a missing tap."""
    for data, keys, words in (
        (DataInfo(shape=(1, 8, 8), count=1, domain=UNIT.domain), {}, "images of 3 channels"),
        (DataInfo(shape=(3, 9, 8), count=1, domain=UNIT.domain), {}, "divides sizes by 2"),
        (UNIT, {"image_size": 7}, "have shape [3, 7, 7]"),
        (DataInfo(shape=(3, 8, 8), count=1), {}, "with a range"),
        (UNIT, {"vae": "x"}, "wanted either vae or config, found both"),
        (UNIT, {"config": {"nosuch": 1}}, "AutoencoderKL refuses these arguments"),
    ):
        with pytest.raises(RecipeError) as caught:
            made(data, **keys)
        assert words in caught.value.faults[0].message
    with pytest.raises(DataError, match="cannot read the folder"):
        made(config={}, vae=str(tmp_path))
    with pytest.raises(ContractError, match="no tap 'latents'"):
        made()(images(), taps=("latents",))
