"""The network `vae-decoder`: the way back of the dataset `latent`, open to gradients."""

import pytest
import torch
from advdiff_backbones.vae_decoder import VAEDecoder
from diffusers import AutoencoderKL
from helpers_nets import PATH

from advdiff_core.engine.assemble import assemble
from advdiff_core.errors import RecipeError
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import recipe_from_dict
from advdiff_core.types import DataInfo

CONFIG = {
    "block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    "scaling_factor": 0.5, "shift_factor": 0.1,
}  # fmt: skip
LATENTS = DataInfo(shape=(4, 4, 4), count=12)


def latents(seed=0):
    """Latents [2, 4, 4, 4]."""
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def decoder(build=None, **settings):
    """The network."""
    build = build or Build(path=PATH, seed=7, data=LATENTS)
    return VAEDecoder(VAEDecoder.Settings(**settings), build).eval()


def test_decodes_as_diffusers_does(tmp_path):
    """Scaling is undone, then the autoencoder's own decoder runs; nothing is clipped."""
    torch.manual_seed(0)
    own = AutoencoderKL(**CONFIG).eval()
    own.save_pretrained(tmp_path / "vae")
    x = 3 * latents()
    with torch.no_grad():
        found = decoder(vae=str(tmp_path), subfolder="vae")(x).output
        wanted = own.decode(x / 0.5 + 0.1).sample
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_latents():
    """The slope along a direction is that of finite differences."""
    net, x, ahead = decoder(config=CONFIG).double(), latents().double(), latents(1).double()
    moved = x.clone().requires_grad_()
    net(moved).output.square().mean().backward()
    with torch.no_grad():
        up, down = (net(x + s * ahead).output.square().mean() for s in (1e-5, -1e-5))
    torch.testing.assert_close((moved.grad * ahead).sum(), (up - down) / 2e-5, rtol=1e-5, atol=0)


def test_an_untrained_autoencoder_is_that_of_the_data():
    """With the same arguments in data and model, both have the weights of the run's seed."""
    config = {**CONFIG, "in_channels": 1, "out_channels": 1}
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
    autoencoder = {"config": listed}
    net = {"use": "mlp", "width": 8, "blocks": 1}
    recipe = recipe_from_dict({
        "advdiff": 1, "run": {"seed": 3},
        "data": {"use": "latent", "images": {"use": "digits"}, **autoencoder},
        "models": {"student": net,
                   "decoder": {"use": "vae-decoder", "parametrization": "none", "frozen": True,
                               **autoencoder}},
    })  # fmt: skip
    made = assemble(recipe)
    x = made.source.batch(torch.arange(2)).x
    found = made.scene.roles["decoder"].module(x).output
    torch.testing.assert_close(found.clamp(-1, 1), made.source.decode(x))


@pytest.mark.parametrize("shape", [(3,), (3, 8, 8)])
def test_refuses_data_that_are_no_latents(shape):
    """One line with the shape and the mend."""
    build = Build(path=PATH, seed=7, data=DataInfo(shape=shape, count=4))
    with pytest.raises(RecipeError, match="the decoder reads latents of 4 channels") as caught:
        decoder(build, config=CONFIG)
    assert 'use = "latent"' in str(caught.value)
