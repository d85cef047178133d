"""Small trained classifiers, and real ones, for tests of attacks that look for a boundary."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from advdiff_core import Build
from advdiff_core.draws import Draws
from advdiff_core.types import DataInfo, Domain

__all__ = ["UNIT", "NetVictim", "draws", "make", "real_victim", "trained"]

UNIT = Domain(0.0, 1.0)
SHAPE = (3, 6, 6)


class NetVictim:
    """A classifier and the true classes of its inputs; counts what it is asked.

    Without `apart` its samples cannot be taken apart.
    """

    def __init__(self, net, y, *, apart=True, asked=None):
        self.net, self.y, self.apart = net, y, apart
        self.asked = [] if asked is None else asked

    @property
    def labels(self):
        """True classes [B]."""
        return self.y

    def rows(self, rows):
        """The same for some samples."""
        return NetVictim(self.net, self.y[rows], asked=self.asked) if self.apart else None

    def outputs(self, x):
        """Logits [B, K]."""
        self.asked.append(len(x))
        return self.net(x)

    def loss(self, outputs):
        """Cross-entropy [B]."""
        return F.cross_entropy(outputs, self.y, reduction="none")

    def broken(self, outputs):
        """Whether each is misclassified [B]."""
        return outputs.argmax(1).ne(self.y)


def make(cls, **keys):
    """A component with these settings."""
    return cls(cls.Settings(**keys), Build(path="attack"))


def draws(size, seed=0):
    """Random numbers for a whole batch."""
    return Draws((seed, "test"), start=0, size=size, total=size, device="cpu")


@functools.cache
def trained(classes=5, seed=0, domain=UNIT):
    """A small network that knows noisy patterns, and 24 inputs with labels that it gets right."""
    generator = torch.Generator().manual_seed(seed)
    patterns = 0.3 + 0.4 * torch.rand(classes, *SHAPE, generator=generator)
    y = torch.arange(400) % classes
    x = (patterns[y] + 0.25 * torch.randn(400, *SHAPE, generator=generator)).clamp(0, 1)
    x = domain.low + domain.span * x
    size = x[0].numel()
    net = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.SiLU(), nn.Linear(32, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    net.requires_grad_(requires_grad=False).eval()
    right = (net(x).argmax(1) == y).nonzero()[:24, 0]
    return net, x[right], y[right]


@functools.cache
def real_victim(folder, count, name="cifar10_resnet4b_at_linf2", **keys):
    """A published robust classifier, and the first test images of CIFAR-10 with their labels."""
    networks = pytest.importorskip("advdiff_backbones.resnets")
    image = pytest.importorskip("PIL.Image")
    data = DataInfo(shape=(3, 32, 32), count=count, domain=UNIT, classes=10)
    keys = keys or {"channels": 16, "stages": 2}
    cls = networks.NormlessResNet
    net = cls(cls.Settings(**keys), Build(path="models.student", data=data)).eval()
    net.load_state_dict(load_file(folder / "weights" / f"{name}.safetensors"), strict=True)
    net.requires_grad_(requires_grad=False)
    mosaic = np.asarray(image.open(folder / "data/cifar10/test.webp").convert("RGB"))
    tiles = mosaic.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    labels = np.load(folder / "data/cifar10/labels.npz")["y_test"][:count]
    x = torch.from_numpy(tiles[:count].copy()).float() / 255
    return NetVictim(_Logits(net), torch.from_numpy(labels.astype(np.int64))), x


class _Logits(nn.Module):
    """A backbone as a module that returns logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        """Logits [B, K]."""
        return self.net(x).output
