"""PGD and its relatives find, bit for bit, what torchattacks and foolbox find."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from advdiff_attacks.starts import start
from advdiff_attacks.steps import FGSM, PGD
from helpers_boundary import real_victim
from torch import Tensor, nn

from advdiff_core import Attack, Budget, Build, Draws
from advdiff_core.types import Domain

torchattacks = pytest.importorskip("torchattacks")
with warnings.catch_warnings():
    # foolbox imports a name that scipy has moved.
    warnings.simplefilter("ignore", DeprecationWarning)
    foolbox = pytest.importorskip("foolbox")
eagerpy = pytest.importorskip("eagerpy")

SIZE, EPS, STEP, STEPS = 64, 8 / 255, 2 / 255, 10
UNIT = Domain(0.0, 1.0)
BUDGET = Budget("linf", EPS, "image")


class Victim:
    """Cross-entropy of a network."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        self.net, self.labels = net, y

    def outputs(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.net(x)

    def loss(self, outputs: Tensor) -> Tensor:
        """Per sample."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs: Tensor) -> Tensor:
        """Misclassified."""
        return outputs.argmax(1) != self.labels

    def rows(self, rows: Tensor) -> Victim:
        """Some samples."""
        return Victim(self.net, self.labels[rows])


@pytest.fixture
def net() -> nn.Module:
    """A small convolutional network, with weights that make its gradients rough."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10),
        )  # fmt: skip
    return made.eval()


@pytest.fixture
def images() -> Tensor:
    """Images [64, 3, 16, 16] on the grid of bytes, with pixels at both ends of the range."""
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(SIZE, 3, 16, 16, generator=generator) * 1.2 - 0.1).clamp(0, 1).mul(
        255
    ).round() / 255


@pytest.fixture
def labels(net: nn.Module, images: Tensor) -> Tensor:
    """What the network says, for three samples of four."""
    said = net(images).argmax(1)
    return torch.where(torch.arange(SIZE) % 4 == 0, (said + 1) % 10, said)


def draws() -> Draws:
    """Fresh numbers, always the same."""
    return Draws(("peers",), start=0, size=SIZE, total=SIZE, device="cpu")


def run(attack: Attack, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Our attack, as anybody runs it."""
    return attack.run(Victim(net, y), x, BUDGET, domain=UNIT, rng=draws())


def pgd(**keys: Any) -> PGD:
    """PGD with these keys."""
    return PGD(PGD.Settings(**{"steps": STEPS, "keep": "last", **keys}), Build(path="attack"))


def beginning(x: Tensor) -> Tensor:
    """Where our first climb begins."""
    budget = Budget("linf", torch.full((SIZE,), EPS), "image")
    return start(x, budget, UNIT, draws().child("restart", 0), law="uniform")


def same(ours: Tensor, theirs: Tensor) -> int:
    """Samples equal to the last bit."""
    return int((ours == theirs).flatten(1).all(1).sum())


@pytest.mark.parametrize("keys", [{"step": STEP}, {"step_scale": 0.25}], ids=["step", "scale"])
@pytest.mark.parametrize("random", [True, False])
def test_pgd_is_bit_identical_to_torchattacks(
    net: nn.Module, images: Tensor, labels: Tensor, random: bool, keys: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Given the same start, on 64 of 64 samples."""
    delta = beginning(images) - images
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(delta))
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP, steps=STEPS, random_start=random)
    expected = theirs(images, labels)
    monkeypatch.undo()
    ours = pgd(start="uniform" if random else "none", **keys)
    assert same(run(ours, net, images, labels), expected) == SIZE
    assert same(expected, images) == 0


@pytest.mark.parametrize("random", [True, False])
def test_pgd_is_bit_identical_to_foolbox(
    net: nn.Module, images: Tensor, labels: Tensor, random: bool
) -> None:
    """Given the same start, on 64 of 64 samples."""
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=random)
    theirs.get_random_start = lambda x0, epsilon: eagerpy.astensor(beginning(images))
    model = foolbox.PyTorchModel(copy.deepcopy(net), bounds=(0, 1), device="cpu")
    _, expected, _ = theirs(model, images, labels, epsilons=EPS)
    ours = pgd(start="uniform" if random else "none", step=STEP)
    assert same(run(ours, net, images, labels), expected) == SIZE


def test_pgd_is_bit_identical_to_both_on_a_published_classifier(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On 64 of 64 real photos, with the same random start."""
    victim, x = real_victim(real_data, SIZE)
    delta = beginning(x) - x
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(delta))
    first = torchattacks.PGD(victim.net, eps=EPS, alpha=STEP, steps=STEPS)(x, victim.labels)
    monkeypatch.undo()
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    theirs.get_random_start = lambda x0, epsilon: eagerpy.astensor(beginning(x))
    model = foolbox.PyTorchModel(victim.net.eval(), bounds=(0, 1), device="cpu")
    second = theirs(model, x, victim.labels, epsilons=EPS)[1]
    found = run(pgd(start="uniform", step=STEP), victim.net, x, victim.labels)
    assert (same(found, first), same(found, second), same(found, x)) == (SIZE, SIZE, 0)


def test_momentum_is_that_of_torchattacks(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """MI-FGSM (Dong et al. 2018), on 64 of 64 samples."""
    expected = torchattacks.MIFGSM(net, eps=EPS, alpha=STEP, steps=STEPS, decay=1.0)(images, labels)
    ours = pgd(start="none", momentum=1.0, step=STEP)
    assert same(run(ours, net, images, labels), expected) == SIZE


def test_fgsm_is_bit_identical_to_torchattacks(
    net: nn.Module, images: Tensor, labels: Tensor
) -> None:
    """Goodfellow et al. (2015), on 64 of 64 samples."""
    expected = torchattacks.FGSM(net, eps=EPS)(images, labels)
    ours = FGSM(FGSM.Settings(keep="last"), Build())
    assert same(run(ours, net, images, labels), expected) == SIZE


def test_fgsm_with_a_random_start_is_that_of_fast_adversarial_training(
    net: nn.Module, images: Tensor, labels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wong et al. (2020): FFGSM of torchattacks with the same start, on 64 of 64 samples."""
    begin = beginning(images)
    theirs = torchattacks.FFGSM(net, eps=EPS, alpha=1.25 * EPS)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(begin - images))
    expected = theirs(images, labels)
    monkeypatch.undo()
    ours = FGSM(FGSM.Settings(keep="last", start="uniform", step_scale=1.25), Build())
    assert same(run(ours, net, images, labels), expected) == SIZE


def test_l2_steps_agree_with_torchattacks(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    """To rounding: the norms are summed in another way."""
    theirs = torchattacks.PGDL2(net, eps=0.5, alpha=0.1, steps=STEPS, random_start=False)
    budget = Budget("l2", 0.5, "image")
    ours = pgd(start="none", step=0.1)
    found = ours.run(Victim(net, labels), images, budget, domain=UNIT, rng=draws())
    torch.testing.assert_close(found, theirs(images, labels), rtol=0, atol=1e-5)
