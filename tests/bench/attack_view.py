"""Inner maximisation of a training step: 10-step PGD on a wide resnet against its bare passes.

Ours is the search of a recipe's view `perturb = { use = "attack", attack = { use = "pgd", ... } }`
in a training step. The peer is ten times what no attack can do without: a forward and a backward
towards the input alone, of the same network in the same mode with frozen parameters. Both
alternate in one process on one thread; the ratio is the median over the pairs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from advdiff_attacks.steps import PGD
from advdiff_backbones.wide_resnet import WideResNet
from torch import Tensor

from advdiff_core import DataInfo, Domain, Spec, View
from advdiff_core.perturbations import AttackPerturbation
from advdiff_core.step.plan import Phase, Plan
from advdiff_core.testing.steps import Model, Moved, Stage, build_stage
from tests.bench.duel import rounds_of

STEPS, BATCH, WARM_UP, ROUNDS = 10, 16, 1, 9
DEPTH, WIDTH = 16, 2
DATA = DataInfo(shape=(3, 32, 32), count=64, domain=Domain(0.0, 1.0), classes=10)


def stage() -> Stage:
    """A wide resnet under the PGD of Linf adversarial training (Madry et al. 2018)."""
    pgd = PGD.Settings(steps=STEPS, step_scale=0.25, keep="last")
    attack = Spec(kind="attack", use="pgd", settings=pgd, component=PGD)
    view = Moved("image", AttackPerturbation, AttackPerturbation.Settings(attack=attack))
    net = Model(WideResNet, WideResNet.Settings(depth=DEPTH, width=WIDTH), parametrization="none")
    return build_stage(data=DATA, models={"student": net}, views={"adv": view})


def batch() -> tuple[Tensor, Tensor]:
    """Random images [B, 3, 32, 32] and labels [B]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, *DATA.shape, generator=generator)
    return x, torch.randint(10, (BATCH,), generator=generator)


def search(made: Stage) -> Callable[[], None]:
    """The view of one training step."""
    needs = (View("image"), View("adv"))
    plan = Plan([Phase(player="student", roles=frozenset({"student"}), needs=needs)], made.scene)
    x, y = batch()

    def run() -> None:
        made.step(plan, x, y).get(View("adv"))

    return run


def bare(made: Stage) -> Callable[[], None]:
    """Ten forwards and input backwards."""
    network = made.scene.roles["student"].module
    x, y = batch()

    def run() -> None:
        flags = [p.requires_grad for p in network.parameters()]
        network.requires_grad_(False)
        for _ in range(STEPS):
            leaf = x.detach().requires_grad_()
            loss = F.cross_entropy(network(leaf).output, y, reduction="sum")
            torch.autograd.grad(loss, leaf)
        for parameter, flag in zip(network.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)

    return run


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    made = stage()
    sides = {"search": search(made), "bare": bare(made)}
    times = rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP)
    ours, peer = times["search"], times["bare"]
    ratios = sorted(a / b for a, b in zip(ours, peer, strict=True))
    ratio = statistics.median(ratios)
    return [
        {
            "name": f"{STEPS}-step Linf PGD in a training step, wide-resnet {DEPTH}-{WIDTH}",
            "batch": BATCH,
            "ours": statistics.median(ours),
            "peer": statistics.median(peer),
            "ratio": ratio,
            "spread": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            "target": 1.05,
            "ok": ratio <= 1.05,
        }
    ]
