"""Attacks on a classifier: PGD against torchattacks and foolbox, AutoAttack against pyautoattack.

PGD: ten Linf steps from the clean images on a wide resnet, which end in the same points on all
sides. AutoAttack: all four attacks in shortened form on a small residual network; its labels are
what the network itself says and the ball is such that most samples stand, as those of a
robust network do. There the sides draw numbers of their own: the share of samples that only one of
them breaks is what may differ. docs/results/attacks.md compares both on trained networks.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from advdiff_attacks.steps import PGD
from advdiff_backbones.resnets import CifarResNet
from advdiff_backbones.wide_resnet import WideResNet
from torch import Tensor, nn

from advdiff_core import Budget, Build, DataInfo, Domain, SampleDraws
from tests.bench.duel import Agreement, duel, largest_gap, rounds_of

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "results"))
from attack_sides import ClassifierVictim, Logits, broken, frozen, ours, theirs

DATA = DataInfo(shape=(3, 32, 32), count=64, domain=Domain(0.0, 1.0), classes=10)
BATCH, STEPS, RADIUS, STEP = 16, 10, 8 / 255, 2 / 255
ROUNDS, WARM_UP = 7, 1
#: AutoAttack's attacks, shortened alike on all sides; a radius at which most samples stand.
MEMBERS = ("apgd-ce", "apgd-t", "fab-t", "square")
SHORT, SMALL, SUITE_ROUNDS = {"steps": 10, "targets": 2, "queries": 150}, 5 / 255, 3
#: A pixel steps to the other side of its start where a gradient is rounding.
ROUNDING, DISAGREE = 1e-6, 0.05
Side = Callable[[], Tensor]


def images() -> Tensor:
    """Random images [B, 3, 32, 32] on [0, 1]."""
    return torch.rand(BATCH, *DATA.shape, generator=torch.Generator().manual_seed(0))


def labels_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the network says [B]."""
    with torch.no_grad():
        found: Tensor = model(x).argmax(1)
    return found


def pgd_sides(model: nn.Module) -> dict[str, Side]:
    """The three libraries on one model."""
    import foolbox
    import torchattacks

    x = images()
    y = (labels_of(model, x) + 1) % 10
    # Other labels than the network's: no sample is done before the last step.
    attack = PGD(PGD.Settings(steps=STEPS, step=STEP, start="none", keep="last"), Build())
    numbers = SampleDraws((0,), list(range(BATCH)), device=x.device)
    missed = foolbox.criteria.Misclassification(y)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    linf = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    peer = torchattacks.PGD(model, eps=RADIUS, alpha=STEP, steps=STEPS, random_start=False)

    def mine() -> Tensor:
        with frozen(model):
            return attack.run(
                ClassifierVictim(model, y), x, Budget("linf", RADIUS, "image"),
                domain=DATA.domain, rng=numbers,
            )  # fmt: skip

    return {
        "ours": mine, "torchattacks": lambda: peer(x, y),
        "foolbox": lambda: linf.run(wrapped, x, missed, epsilon=RADIUS),
    }  # fmt: skip


def pgd() -> list[dict[str, object]]:
    """PGD in ten steps."""
    torch.manual_seed(0)
    net = WideResNet(WideResNet.Settings(depth=16, width=2), Build(data=DATA))
    model = Logits(net).eval()
    sides = pgd_sides(model)
    found = {name: side().detach() for name, side in sides.items()}
    agreements = {
        name: largest_gap(found["ours"], x, ROUNDING) for name, x in found.items() if name != "ours"
    }
    times = rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP)
    return duel(f"Linf PGD, {STEPS} steps, wide-resnet 16-2", times, agreements)


class Suite:
    """The attacks one after the other, each on the samples that stand."""

    def __init__(self, model: nn.Module, make: Callable[..., Callable[..., Tensor]]) -> None:
        self.model, self.x = model, images()
        self.y = labels_of(model, self.x)
        self.attacks = [make(model, name, SMALL, SHORT) for name in MEMBERS]

    def __call__(self) -> Tensor:
        """Which samples [B] are broken in the end."""
        done = torch.zeros(BATCH, dtype=torch.bool)
        for attack in self.attacks:
            rows = (~done).nonzero()[:, 0]
            if len(rows):
                x, y = self.x[rows], self.y[rows]
                found = attack(x, y, rows.tolist())
                done[rows] |= broken(self.model, found, x, y, SMALL)
        return done


def autoattack() -> list[dict[str, object]]:
    """AutoAttack, shortened."""
    torch.manual_seed(0)
    net = CifarResNet(CifarResNet.Settings(depth=8), Build(data=DATA))
    model = Logits(net).eval()
    sides = {"ours": Suite(model, ours), "pyautoattack": Suite(model, theirs)}
    mine, peer = (side().float() for side in sides.values())
    assert mine.mean() < 1, "no sample stands"
    differ = F.l1_loss(mine, peer).item()
    times = rounds_of(sides, rounds=SUITE_ROUNDS, warm_up=0)
    told = " ".join(f"{value} {key}" for key, value in SHORT.items())
    name = f"AutoAttack ({told}), resnet-8, {int(BATCH - mine.sum())} of {BATCH} samples stand"
    return duel(name, times, {"pyautoattack": Agreement(differ, DISAGREE)})


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pgd() + autoattack()
