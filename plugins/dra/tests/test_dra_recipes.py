"""Recipes of adversarial training: they check, and on digits they make networks robust."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from advdiff_core.engine.assemble import assemble
from advdiff_core.engine.distributed import World
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.trainer import Trainer
from advdiff_core.recipe import load_recipe

pytest.importorskip("advdiff_attacks")
pytest.importorskip("advdiff_backbones")
pytest.importorskip("advdiff_datasets")
sklearn = pytest.importorskip("sklearn.datasets")

RECIPES = Path(str(files("advdiff_dra"))) / "recipes"
#: Radius of the recipes on the [0, 1] scale; images are in [-1, 1].
EPS = 2 * 0.15
#: Images of a training here; the recipes have more.
IMAGES = 3_000
#: And five steps of the attack; three of 0.4 radii do here.
CHEAP = ("views.adv.perturb.attack.steps=3", "views.adv.perturb.attack.step_scale=0.4")


def trained(name: str, *changes: str) -> Any:
    """The student of a recipe after a short training, in evaluation mode."""
    overrides = [f"run.images={IMAGES}", "evaluate.metrics=[]", "run.precision=fp32", *changes]
    recipe = load_recipe(RECIPES / f"{name}.toml", overrides=overrides)
    ticks: Any = None
    trainer = Trainer(assemble(recipe), world=World(), ticks=ticks, stop=StopFlag())
    while trainer.nimg < trainer.images:
        trainer.train_step()
    return trainer.scene.roles["student"].module.eval()


def held_out() -> tuple[Tensor, Tensor]:
    """The 297 digits that the recipes do not train on."""
    raw = sklearn.load_digits()
    x = torch.from_numpy(raw.images[1500:]).float()[:, None] / 8 - 1
    return x, torch.from_numpy(raw.target[1500:]).long()


def accuracies(net: Any) -> tuple[float, float]:
    """Clean accuracy, and that under 20 steps of PGD from a random start."""
    x, y = held_out()
    numbers = torch.Generator().manual_seed(0)
    adv = (x + EPS * (2 * torch.rand(x.shape, generator=numbers) - 1)).clamp(-1, 1)
    for _ in range(20):
        adv = adv.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net(adv).output, y), adv)
        delta = (adv.detach() + EPS / 4 * slope.sign() - x).clamp(-EPS, EPS)
        adv = (x + delta).clamp(-1, 1)
    right = [float((net(z).output.argmax(1) == y).float().mean()) for z in (x, adv.detach())]
    return right[0], right[1]


@pytest.fixture(scope="module")
def plain() -> tuple[float, float]:
    """The same network, data and schedule without an adversary."""
    return accuracies(trained("digits-trades", "terms.robust.use=cross-entropy", "views={}"))


@pytest.mark.parametrize("name", ["digits-trades", "digits-pgd-at", "digits-mart", "digits-awp"])
def test_adversarial_training_beats_plain_training_under_attack(
    name: str, plain: tuple[float, float]
) -> None:
    """By more than 20 points on held-out digits, after a few seconds of training."""
    clean, robust = accuracies(trained(name, *CHEAP))
    assert robust > plain[1] + 0.2
    assert clean > 0.7


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_checks(path: Path) -> None:
    """Every key of every recipe is known, also of those that are too long to train here."""
    assert load_recipe(path).players


def test_the_recipe_of_dm_at_has_its_numbers() -> None:
    """Section 1 of DM-AT: eps, alpha, steps, start, mode, beta, smoothing, rate, decay."""
    recipe = load_recipe(RECIPES / "cifar10-trades.toml")
    perturb, term = recipe.views["adv"].perturb.settings, recipe.terms["robust"].spec.settings
    attack = perturb.attack.settings
    assert (perturb.radius, perturb.mode, perturb.objective) == (8 / 255, "train", "kl")
    assert (attack.steps, attack.step, attack.start, attack.keep) == (
        10,
        2 / 255,
        "uniform",
        "last",
    )
    assert (term.beta, term.label_smoothing) == (5.0, 0.1)
    sgd = recipe.players["student"].optimizer.settings
    assert (sgd.lr, sgd.momentum, sgd.nesterov, sgd.weight_decay) == (0.2, 0.9, True, 5e-4)
    net = recipe.models["student"].spec.settings
    assert (net.depth, net.width, net.activation, net.norm_momentum) == (28, 10, "silu", 0.01)
