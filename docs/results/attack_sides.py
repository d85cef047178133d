"""Our attacks and pyautoattack's behind one face, and the published classifiers they are run on."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from advdiff_attacks.autoattack import AutoAttack
from advdiff_attacks.square_plan import windows
from advdiff_backbones.resnets import CifarResNet, NormlessResNet
from PIL import Image
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from safetensors.torch import load_file
from torch import Tensor, nn

from advdiff_core import Budget, Build, DataInfo, Domain, Draws, SampleDraws

DOMAIN = Domain(0.0, 1.0)
SEED = 0
NETWORKS = {
    "cifar10_resnet20_standard": (CifarResNet, {"depth": 20}),
    "cifar10_resnet2b_at_linf2": (NormlessResNet, {"channels": 8, "stages": 1}),
    "cifar10_resnet4b_at_linf2": (NormlessResNet, {"channels": 16, "stages": 2}),
}
#: Settings of AutoAttack's standard version.
FULL = {"steps": 100, "targets": 9, "queries": 5000}

#: Adversarial inputs [B, ...] for images [B, ...], labels [B] and numbers of the images.
Side = Callable[[Tensor, Tensor, list[int]], Tensor]


class Logits(nn.Module):
    """A backbone as other libraries call it: images to logits."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C, H, W]."""
        return self.backbone(x).output


class ClassifierVictim:
    """A classifier's logits and labels."""

    def __init__(self, model: nn.Module, labels: Tensor) -> None:
        self.model, self.labels = model, labels

    def rows(self, rows: Tensor) -> ClassifierVictim:
        """The same model for some samples."""
        return ClassifierVictim(self.model, self.labels[rows])

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.model(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Cross-entropy [B]."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Misclassified [B]."""
        return outputs.argmax(1) != self.labels


def network(weights: Path, name: str, device: str) -> nn.Module:
    """A published classifier of CIFAR-10, with its tensors loaded strictly."""
    cls, keys = NETWORKS[name]
    data = DataInfo(shape=(3, 32, 32), count=50_000, domain=DOMAIN, classes=10)
    net = cls(cls.Settings(**keys), Build(path="models.student", data=data))
    net.load_state_dict(load_file(weights / f"{name}.safetensors"), strict=True)
    return Logits(net.eval()).to(device)


def images(data: Path, count: int, device: str) -> tuple[Tensor, Tensor]:
    """The first `count` test images of CIFAR-10 on [0, 1], and their classes."""
    tiles = np.asarray(Image.open(data / "cifar10" / "test.webp").convert("RGB"))
    x = tiles.reshape(100, 32, 100, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    y = np.load(data / "cifar10" / "labels.npz")["y_test"]
    chosen = torch.from_numpy(x[:count].copy()).float().div(255)
    return chosen.to(device), torch.from_numpy(y[:count].astype(np.int64)).to(device)


class TorchDraws(Draws):
    """Numbers as torch draws them one after the other from a seed, as pyautoattack does."""

    def __init__(self, device: torch.device) -> None:
        self.numbers, self.device = torch.Generator().manual_seed(SEED), device

    def child(self, *_: object) -> TorchDraws:
        """Itself: the stream goes on."""
        return self

    def rows(self, _: Tensor) -> TorchDraws:
        """Itself: as many numbers as are asked for."""
        return self

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers in [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.numbers).to(self.device)


def draws_of(name: str, numbers: list[int], device: torch.device, *, same: bool) -> Draws:
    """A stream by image; `same`: the numbers that auto-PGD of pyautoattack draws."""
    if same and name.startswith("apgd"):
        return TorchDraws(device)
    return SampleDraws((SEED, name), numbers, device=device)


def ours(
    model: nn.Module, name: str, radius: float, keys: dict[str, int], *, same: bool = False,
    **more: Any,
) -> Side:  # fmt: skip
    """One of AutoAttack's members, ours; the model's parameters are frozen while it runs."""
    attack = AutoAttack(AutoAttack.Settings(**keys, **more), Build()).members()[name]
    budget = Budget("linf", radius, "image")

    def run(x: Tensor, y: Tensor, numbers: list[int]) -> Tensor:
        draws = draws_of(name, numbers, x.device, same=same)
        with frozen(model):
            return attack.run(ClassifierVictim(model, y), x, budget, domain=DOMAIN, rng=draws)

    return run


def theirs(
    model: nn.Module, name: str, radius: float, keys: dict[str, int], *, same: bool = False
) -> Side:
    """The same attack of pyautoattack with the same settings; `same`: from the same numbers."""
    common = {
        "eps": radius,
        "norm": "Linf",
        "seed": SEED,
        "device": next(model.parameters()).device,
    }
    apgd = {"n_iter": keys["steps"], "logger": logging.getLogger("peer"), **common}
    fab = {"n_iter": keys["steps"], "n_target_classes": keys["targets"], **common}
    made = {
        "apgd-ce": lambda: APGDAttack(model, loss="ce", **apgd),
        "apgd-t": lambda: APGDAttack_targeted(model, n_target_classes=keys["targets"], **apgd),
        "fab-t": lambda: FABAttack_PT(model, targeted=True, **fab),
        "square": lambda: SquareAttack(
            model, n_queries=keys["queries"], resc_schedule=False, **common
        ),
    }[name]()

    def run(x: Tensor, y: Tensor, numbers: list[int]) -> Tensor:
        if same and name == "square":
            lead(made, draws_of(name, numbers, x.device, same=same), x, keys["queries"])
        return made.perturb(x.clone(), y.clone()).detach()

    return run


def lead(peer: SquareAttack, draws: Draws, x: Tensor, queries: int) -> None:
    """Give pyautoattack's Square the windows, stripes and signs of ours."""
    draws = draws.child("restart", 0)
    plan = windows(tuple(x.shape[1:]), queries, share=0.8, rescale=False, bumpy=False, draws=draws)
    places = iter([torch.tensor([number]) for place in plan.places for number in place])
    stripes = draws.uniform((x.shape[0], x.shape[1], 1, x.shape[3]), -1.0, 1.0).sign()
    signs = iter([stripes, *(plan.signs.flatten(1).float() * 2 - 1)[:, :, None, None]])
    peer.random_int = lambda *_, **__: next(places)
    peer.random_choice = lambda _: next(signs)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside."""
    asked = [one for one in model.parameters() if one.requires_grad]
    for one in asked:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in asked:
            one.requires_grad_(True)


def timed(side: Side, x: Tensor, y: Tensor, numbers: list[int]) -> tuple[Tensor, float]:
    """What a side finds, and the seconds of processor time (on a GPU: of the clock) it takes."""
    clock = time.process_time if x.device.type == "cpu" else time.perf_counter
    begin = clock()
    found = side(x, y, numbers)
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return found, clock() - begin


@torch.no_grad()
def broken(model: nn.Module, found: Tensor, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Which samples [B] a fresh forward misclassifies within the radius and [0, 1]."""
    inside = (found - x).abs().flatten(1).amax(1) <= radius + 1e-6
    inside &= (found.flatten(1).amin(1) >= 0) & (found.flatten(1).amax(1) <= 1)
    return (model(found).argmax(1) != y) & inside


class Memory:
    """Results by key in a JSON file, so that a run that was cut off goes on."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.held: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}

    def get(self, key: str, make: Callable[[], Any]) -> Any:
        """What is held under `key`, else what `make` returns, which is then held."""
        if key not in self.held:
            self.held[key] = make()
            self.file.write_text(json.dumps(self.held))
        return self.held[key]
