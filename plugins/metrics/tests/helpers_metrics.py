"""Stand-ins that tests of the metrics share."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import torch
from attrs import define, field
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_inceptionv3 as library

from advdiff_core.interfaces.component import Build, ModelInfo
from advdiff_core.types import DataInfo, Domain

IMAGES = DataInfo(shape=(3, 32, 32), count=40, domain=Domain(-1.0, 1.0), classes=10)
CLASSIFIER = ModelInfo(kind="backbone", frozen=True)


def images(count, seed=0, shift=0.0, shape=(3, 32, 32)):
    """Smooth coloured images [N, C, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator) * 2 - 1
    grown = torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic")
    return (grown + shift).clamp(-1, 1)


@define
class FakeEvaluation:
    """What a metric reads."""

    samples: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    data: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    folder: object = None
    info: DataInfo = IMAGES
    fingerprint: str = "data"
    modules: dict = field(factory=dict)
    notes: list = field(factory=list)
    remembered: dict = field(factory=dict)
    device: torch.device = field(factory=lambda: torch.device("cpu"))

    def __attrs_post_init__(self):
        self.data = self.clean if self.data is None else self.data

    def module(self, role):
        """The role's network."""
        return self.modules[role]

    def remember(self, key, make):
        """Made once."""
        if key not in self.remembered:
            self.remembered[key] = make()
        return self.remembered[key]

    def note(self, text):
        """Kept."""
        self.notes.append(text)


def build_of(data=IMAGES, models=None, make=None):
    """What a metric is told."""
    return Build(path="evaluate.metrics.0", data=data, models=models or {}, make=make)


def metric(component, world=IMAGES, models=None, make=None, settings_of=None, **keys):
    """A metric with these keys."""
    return component((settings_of or component.Settings)(**keys), build_of(world, models, make))


@functools.cache
def inception_weights():
    """A file of random weights for FID's Inception, gone with the process."""
    with (
        mock.patch.object(library.FeatureExtractorInceptionV3, "load_state_dict"),
        mock.patch.object(library, "load_state_dict_from_url"),
        torch.random.fork_rng(),
    ):
        torch.manual_seed(0)
        net = library.FeatureExtractorInceptionV3("random", ["2048"])
    folder = tempfile.mkdtemp(prefix="advdiff-inception-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "random.safetensors"
    save_file(net.state_dict(), path)
    return path
