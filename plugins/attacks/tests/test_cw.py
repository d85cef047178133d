"""Carlini and Wagner's attack: as near as foolbox's, exact where the answer is known."""

from __future__ import annotations

import itertools

import pytest
import torch
from advdiff_attacks.cw import CW
from advdiff_attacks.objectives import margin
from helpers_boundary import UNIT, NetVictim, draws, make, trained
from torch import nn

from advdiff_core import Budget
from advdiff_core.math import norms
from advdiff_core.types import Domain

FREE = float("inf")
QUICK = {"steps": 60, "searches": 4, "initial_c": 0.1, "lr": 0.05}


def _search(attack, victim, x, *, radius=FREE, domain=UNIT):
    budget = Budget("l2", radius, "image")
    return attack.run(victim, x, budget, domain=domain, rng=draws(len(x)))


def test_cw_finds_the_norms_of_foolbox():
    """With the same settings all break, and each distance is foolbox's."""
    foolbox = pytest.importorskip("foolbox")
    net, x, y = trained()
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=4, steps=60, stepsize=0.05, initial_const=0.1, abort_early=False
    )
    theirs = attack(model, x.clone(), y, epsilons=None)[0]
    found = _search(make(CW, **QUICK, abort_early=False), NetVictim(net, y), x)
    for points in (theirs, found):
        assert bool(net(points).argmax(1).ne(y).all())
    ours, foreign = (norms.norm(points - x, "l2") for points in (found, theirs))
    torch.testing.assert_close(ours, foreign, rtol=2e-3, atol=1e-4)


def test_cw_with_one_c_finds_the_norms_of_torchattacks():
    """One value of c and one descent: torchattacks' version of it.

    Its pixels at 0 or 1 cannot move, and it takes other classes' logits for at least 0: we compare
    where neither matters. It gives up the whole batch at once; we take as many steps as it did.
    """
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = trained()
    raised, steps, x = _Raised(), [], 0.02 + 0.96 * x
    handle = raised.register_forward_hook(lambda *_: steps.append(1))
    net = nn.Sequential(net, raised)
    theirs = torchattacks.CW(net, c=1.0, steps=40, lr=0.02)(x, y)
    handle.remove()
    assert len(steps) > 10
    attack = make(CW, steps=len(steps), searches=1, initial_c=1.0, lr=0.02, abort_early=False)
    found = _search(attack, NetVictim(net, y), x)
    broken = net(theirs).argmax(1).ne(y)
    assert bool(broken.any())
    assert torch.equal(net(found).argmax(1).ne(y), broken)
    ours, foreign = (norms.norm(points - x, "l2")[broken] for points in (found, theirs))
    torch.testing.assert_close(ours, foreign, rtol=1e-3, atol=1e-4)


class _Raised(nn.Module):
    """Logits, all above zero."""

    def forward(self, logits):
        """Logits [B, K]."""
        return logits + 20


@pytest.mark.parametrize("domain", [None, Domain(-50.0, 50.0)])
def test_cw_comes_near_the_distance_of_a_linear_boundary(domain):
    """Two classes, one plane: the distance is known, and undercut by nobody."""
    net = nn.Linear(6, 2).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.requires_grad_(requires_grad=False)
    x = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    logits = net(x)
    gap = (logits[:, 0] - logits[:, 1]).abs()
    distance = gap / (net.weight[0] - net.weight[1]).norm()
    lr = 0.02 if domain is None else 0.001
    attack = make(CW, steps=200, searches=9, lr=lr, initial_c=0.01)
    found = _search(attack, NetVictim(net, logits.argmax(1)), x, domain=domain)
    length = norms.norm(found - x, "l2")
    assert bool((length >= distance * (1 - 1e-9)).all())
    assert bool((length <= distance * 1.05 + 0.02).all())


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_cw_points_have_the_margin_that_is_asked_for(confidence):
    """Where something is found, another class leads by `confidence`."""
    net, x, y = trained()
    found = _search(make(CW, **QUICK, confidence=confidence), NetVictim(net, y), x)
    moved = (found != x).flatten(1).any(1)
    assert bool(moved.any())
    assert bool((margin(net(found[moved]), y[moved]) >= confidence).all())


def test_cw_looks_for_c_per_sample_and_stops_early_without_loss():
    """Stopping early takes fewer evaluations; distances stay within a few percent."""
    net, x, y = trained()
    lengths, asked = [], []
    for early in (False, True):
        victim = NetVictim(net, y)
        keys = {**QUICK, "steps": 200, "abort_early": early}
        found = _search(make(CW, **keys), victim, x)
        lengths.append(norms.norm(found - x, "l2"))
        asked.append(sum(victim.asked))
    assert asked[1] < asked[0]
    torch.testing.assert_close(lengths[1], lengths[0], rtol=0.1, atol=0.02)


def test_more_searches_never_lengthen_what_is_found():
    """The nearest point is kept over all values of c, the repeated last one included."""
    net, x, y = trained()
    keys = {"steps": 25, "lr": 0.05, "initial_c": 1.0}
    lengths = [
        norms.norm(_search(make(CW, searches=n, **keys), NetVictim(net, y), x) - x, "l2")
        for n in (1, 4, 10)
    ]
    for less, more in itertools.pairwise(lengths):
        assert bool((more <= torch.where(less == 0, torch.inf, less)).all())


def test_cw_means_the_same_in_every_range_of_values():
    """In [-1, 1] points are those of [0, 1], stretched."""
    net, x, y = trained()
    signed = nn.Sequential(_FromSigned(), net)
    small = _search(make(CW, **QUICK), NetVictim(net, y), x)
    large = _search(make(CW, **QUICK), NetVictim(signed, y), 2 * x - 1, domain=Domain(-1.0, 1.0))
    torch.testing.assert_close((large + 1) / 2, small, rtol=0, atol=5e-3)


class _FromSigned(nn.Module):
    """Values in [-1, 1] brought to [0, 1]."""

    def forward(self, x):
        """Images [B, ...] in [0, 1]."""
        return (x + 1) / 2


@pytest.mark.parametrize("apart", [True, False])
def test_cw_leaves_samples_that_are_wrong_already(apart):
    """They come back bit for bit beside others that are searched."""
    net, x, y = trained()
    some = torch.where(torch.arange(len(y)) % 2 == 0, y, (y + 1) % 5)
    found = _search(make(CW, **QUICK), NetVictim(net, some, apart=apart), x)
    assert torch.equal(found[1::2], x[1::2])
    assert bool((found[::2] != x[::2]).flatten(1).any(1).all())
