"""Sizes of networks: known counts, nothing computed, and what cannot be counted."""

import pytest
import torch
from torch import nn

from advdiff_core.backbones.mlp import MLP
from advdiff_core.backbones.unet import UNet
from advdiff_core.discovery import scan
from advdiff_core.engine import api
from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.planning import plan_experiment
from advdiff_core.engine.size import default_size, macs_of, macs_words, parameters_of
from advdiff_core.interfaces.backbone import Backbone, BackboneOutput
from advdiff_core.interfaces.component import Build
from advdiff_core.recipe import loads_recipe
from advdiff_core.settings import setting, settings
from advdiff_core.testing.parts import BenchCritic, BenchTarget
from advdiff_core.types import DataInfo, Domain

IMAGES = DataInfo(shape=(1, 8, 8), count=4, domain=Domain(-1.0, 1.0), classes=3)
POINTS = DataInfo(shape=(2,), count=4)


def build_of(data):
    """A `Build` with data."""
    return Build(path="models.student", data=data)


def unet(**more):
    """A U-Net with two levels of one block, attention at 4x4, on 8x8 images."""
    wanted = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (4,), **more}
    return UNet(UNet.Settings(**wanted), build_of(IMAGES))


def by_hand():
    """Multiply-accumulates of `unet()`, layer by layer."""

    def conv(inner, outer, size, kernel=3):
        return inner * outer * kernel**2 * size**2

    def block(inner, outer, size):
        skip = conv(inner, outer, size, 1) if inner != outer else 0
        return conv(inner, outer, size) + conv(outer, outer, size) + 32 * 2 * outer + skip

    def attention(width, positions):
        return 4 * width * width * positions + 2 * width * positions**2

    embedding = 16 * 32 + 32 * 32
    down = block(8, 8, 8) + conv(8, 8, 4) + block(8, 16, 4) + attention(16, 16)
    middle = 2 * (block(16, 16, 4) + attention(16, 16))
    up = block(32, 16, 4) + attention(16, 16) + conv(16, 16, 8) + block(24, 8, 8)
    return embedding + conv(1, 8, 8) + down + middle + up + conv(8, 1, 8)


@pytest.mark.parametrize("kernel", ["math", "fused"])
def test_macs_of_a_unet_are_those_counted_by_hand(kernel):
    """Convolutions, linear layers and attention, whatever kernel computes it."""
    assert macs_of(unet(attention_kernel=kernel), "backbone", IMAGES) == by_hand()


def test_macs_of_a_linear_layer_are_its_weights():
    """A critic of two layers, a target of one, a classifier without a noise level."""
    critic, target = (part({}, build_of(POINTS)) for part in (BenchCritic, BenchTarget))
    assert macs_of(critic, "discriminator", POINTS) == 2 * 4 + 4
    assert macs_of(target, "alignment_target", POINTS) == 2 * 4
    net = MLP(MLP.Settings(width=16, blocks=1, outputs=5), build_of(POINTS))
    assert macs_of(net, "backbone", POINTS, levels=False) == macs_of(net, "backbone", POINTS)


def test_counting_leaves_the_network_and_the_generator_alone():
    """Modes, statistics and random state are as before; nothing becomes a fake tensor."""
    net = unet(dropout=0.5)
    net.blocks[0].eval()
    net.train(True)
    net.blocks[0].train(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    macs_of(net, "backbone", IMAGES)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert not net.blocks[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.isfinite(net(torch.zeros(1, 1, 8, 8)).output).all()


class Looking(Backbone):
    """A network whose way depends on the numbers."""

    @settings
    class Settings:
        """Keys."""

        width: int = setting(3, help="features")

    taps = {}  # noqa: RUF012 - never written to.

    def __init__(self, settings, build):
        super().__init__(settings, build)
        self.layer = nn.Linear(2, settings.width)

    def forward(self, x, c_noise=None, labels=None, *, taps=(), stop_at=None):
        """Branch on a number."""
        return BackboneOutput(self.layer(x) if x.sum() > 0 else x, {})


class Needing(Looking):
    """A network with a key that has no default."""

    @settings
    class Settings:
        """Keys."""

        width: int = setting(help="features")


def test_what_looks_at_numbers_is_not_counted():
    """The parameters are known, the work is not."""
    net = Looking(Looking.Settings(), build_of(POINTS))
    assert macs_of(net, "backbone", POINTS) is None
    assert parameters_of(net) == 9


def test_default_size_takes_images_first_and_points_where_it_has_to():
    """The U-Net is sized for images, what fails on them for points, and the data are named."""
    size = default_size(UNet, "backbone", UNet.Settings)
    assert size.shape == (3, 32, 32)
    real = UNet(UNet.Settings(), build_of(DataInfo(shape=(3, 32, 32), count=1)))
    assert size.parameters == parameters_of(real)
    assert size.macs > 1e6
    assert default_size(Needing, "backbone", Needing.Settings) is None


def test_default_size_computes_nothing():
    """A layer of a terabyte is sized without its memory."""

    class Huge(Looking):
        """Very wide."""

        def __init__(self, settings, build):
            super().__init__(settings, build)
            self.layer = nn.Linear(10**6, 10**6)

    assert default_size(Huge, "backbone", Looking.Settings).parameters == 10**12 + 10**6


RECIPE = """
advdiff = 1
[run]
images = 64
batch = 32
[data]
use = "two-moons"
[models.student]
use = "mlp"
width = 16
[models.classifier]
use = "mlp"
width = 16
outputs = 5
parametrization = "none"
frozen = true
"""


def test_plan_tells_the_work_of_each_role():
    """In words and as JSON; the plan that a run writes down does not wait for it."""
    recipe = loads_recipe(RECIPE, "recipe.toml", (), scan())
    report = api.plan(recipe)
    student, classifier = (report.as_json()["roles"][n] for n in ("student", "classifier"))
    assert classifier["macs"] - student["macs"] == 3 * 16  # Five outputs in place of two.
    line = f"({student['parameters']:,} parameters, {macs_words(student['macs'])} a forward of one"
    assert any(line in text for text in report.lines())
    quick = plan_experiment(assemble(recipe))
    assert "macs" not in quick.as_json()["roles"]["student"]
    assert any(f"({student['parameters']:,} parameters)" in text for text in quick.lines())


@pytest.mark.parametrize(
    ("macs", "words"),
    [(9_262_268_416, "9.26 GMAC"), (12_000_000, "12 MMAC"), (1500, "1.5 kMAC"), (7, "7 MAC")],
)
def test_counts_are_told_in_a_fitting_unit(macs, words):
    """Three digits and a unit."""
    assert macs_words(macs) == words
