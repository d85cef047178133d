"""Small networks, images with classes, and evaluations of them, for the tests of analyses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from advdiff_toys.perturbations import ToyFGSM
from torch import Tensor, nn

from advdiff_core import (
    BackboneOutput,
    Batch,
    Build,
    DataInfo,
    Dataset,
    Domain,
    ModelInfo,
    Spec,
    TapInfo,
)
from advdiff_core.schedules import EDM
from advdiff_core.testing.bench import World
from advdiff_core.testing.evaluation import BenchEvaluation

CLASSES = 3
DATA = DataInfo(shape=(1, 4, 4), count=60, classes=CLASSES, domain=Domain(-1.0, 1.0))
SCHEDULE = EDM(EDM.Settings(), Build(path="schedule"))
TAPS = {"maps": TapInfo(width=2, size=(4, 4)), "hidden": TapInfo(width=6)}


def images(count: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 4, 4] in [-1, 1] whose class is a bright row, and classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(count, 1, 4, 4, generator=generator)
    y = torch.arange(count) % CLASSES
    x[torch.arange(count), 0, y] += 0.5
    return x.clamp(-1, 1), y


class Net(nn.Module):
    """Two maps, six features, and logits or an image; the features see a noise level."""

    def __init__(self, outputs: int = CLASSES, seed: int = 0, width: int = 6) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def layer(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / shape[-1] ** 0.5)

        self.maps, self.first = layer(2, 1), layer(width, 32)
        self.last, self.bias = layer(outputs or 16, width), layer(outputs or 16)
        self.outputs, self.calls = outputs, 0

    def forward(
        self, x: Tensor, c_noise: Tensor | None = None, labels: Tensor | None = None, *,
        taps: tuple[str, ...] = (), stop_at: str | None = None,
    ) -> BackboneOutput:  # fmt: skip
        """See `Backbone.forward`."""
        del labels
        self.calls += 1
        maps = torch.einsum("oc,bchw->bohw", self.maps, x)
        hidden = torch.tanh(maps.flatten(1) @ self.first.T)
        if c_noise is not None:
            hidden = hidden + 0.01 * c_noise[:, None]
        features = {k: v for k, v in {"maps": maps, "hidden": hidden}.items() if k in taps}
        if stop_at is not None:
            return BackboneOutput(None, features)
        out = hidden @ self.last.T + self.bias
        return BackboneOutput(out if self.outputs else out.reshape(x.shape), features)


class Given(Dataset):
    """Images that are handed in."""

    def __init__(self, x: Tensor, y: Tensor | None, info: DataInfo = DATA) -> None:
        self.x, self.y, self._info = x, y, info

    @property
    def info(self) -> DataInfo:
        """Of the images."""
        known = self._info
        return DataInfo(
            shape=tuple(self.x.shape[1:]), count=len(self.x), classes=known.classes,
            domain=known.domain,
        )  # fmt: skip

    def batch(self, indices: Tensor) -> Batch:
        """Images [B, ...] and their classes [B]."""
        return Batch(self.x[indices], None if self.y is None else self.y[indices])

    def fingerprint(self) -> str:
        """Of nothing but the count."""
        return f"given {len(self.x)} {float(self.x.sum()):.6f}"


class Placed(NamedTuple):
    """A nested component that exists already."""

    use: str
    made: Any


def attack(**keys: Any) -> Spec:
    """Signed gradient steps."""
    settings: Any = ToyFGSM.Settings
    return Spec(kind="attack", use="toy-fgsm", settings=settings(**keys), component=ToyFGSM)


def placed(kind: str, made: Any) -> Spec:
    """A component that exists already, as a recipe's table."""
    return Spec(kind=kind, use="placed", settings=made, component=type(made))


def build(kind: str = "none", data: DataInfo = DATA, **keys: Any) -> Build:
    """What a metric is told: a student of that parametrization, and a denoiser."""

    def make(spec: Spec) -> Any:
        if spec.use == "placed":
            return spec.settings
        return spec.component(spec.settings, Build(path="attack"))

    told = {"kind": "backbone", "frozen": True, "taps": TAPS}
    models = {
        "student": ModelInfo(parametrization=kind, **told),
        "teacher": ModelInfo(parametrization="eps", **told),
        "dino": ModelInfo(kind="alignment_target", frozen=True, width=4),
    }
    keys = {"schedule": SCHEDULE, **keys}
    return Build(path="evaluate.metrics[0]", data=data, models=models, make=make, **keys)


class Told(BenchEvaluation):
    """An evaluation that remembers, and keeps what it is told."""

    def __init__(self, folder: Path, net: nn.Module, x: Tensor, y: Tensor | None) -> None:
        world = World(name="images", data=DATA)
        super().__init__(world, net, samples=x, data=x, folder=folder)
        self.schedule: Any = SCHEDULE
        self.labels: Any = y
        self.notes: list[str] = []
        self.known: dict[Any, Any] = {}

    def remember(self, key: Any, make: Any) -> Any:
        """What `make()` returned first."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)


def evaluation(folder: Path, net: nn.Module | None = None, **keys: Any) -> Told:
    """Of a network, a classifier if none is given, on the images."""
    x, y = images(**keys)
    return Told(folder, net or Net(), x, y)


def made(cls: Any, told: Build | None = None, **keys: Any) -> Any:
    """A metric with these keys."""
    return cls(cls.Settings(**keys), told or build())
