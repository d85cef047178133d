"""FAB finds near boundaries: against the reference, by its invariants, and at what it costs."""

from __future__ import annotations

import pytest
import torch
from advdiff_attacks.fab import FAB, FABT
from helpers_boundary import UNIT, NetVictim, draws, make, real_victim, trained
from hypothesis import given
from hypothesis import strategies as st
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from advdiff_core import Budget
from advdiff_core.math import norms
from advdiff_core.testing.state import leaves
from advdiff_core.types import Domain

NORMS = {"linf": ("Linf", 0.1), "l2": ("L2", 0.5), "l1": ("L1", 3.0)}
FREE = float("inf")


def _search(attack, victim, x, *, norm, radius=FREE, domain=UNIT, seed=0):
    budget = Budget(norm, radius, "image")
    return attack.run(victim, x, budget, domain=domain, rng=draws(len(x), seed))


def _reference(net, x, y, *, norm, radius, **keys):
    kind, _ = NORMS[norm]
    attack = FABAttack_PT(net, norm=kind, eps=radius, device="cpu", **keys)
    return attack, attack.perturb(x, y)


@pytest.mark.parametrize("alpha", [0.1, 0.02])
@pytest.mark.parametrize("norm", NORMS)
def test_fab_finds_the_norms_of_the_reference(norm, alpha):
    """The smallest perturbation of each sample is pyautoattack's, to rounding."""
    net, x, y = trained()
    attack, _ = _reference(net, x, y, norm=norm, radius=1.0, n_iter=20, alpha_max=alpha)
    with torch.no_grad():
        theirs = norms.norm(attack.attack_single_run(x, y) - x, norm)
    found = _search(make(FAB, steps=20, alpha_max=alpha), NetVictim(net, y), x, norm=norm)
    ours = norms.norm(found - x, norm)
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("settle", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_fab_t_gives_the_verdicts_of_the_reference(norm, settle):
    """Within a radius that breaks some, the same samples fall as with pyautoattack."""
    net, x, y = trained()
    radius = NORMS[norm][1]
    keys = {"n_iter": 20, "targeted": True, "n_target_classes": 4}
    _, theirs = _reference(net, x, y, norm=norm, radius=radius, **keys)
    victim = NetVictim(net, y)
    attack = make(FABT, steps=20, targets=4, settle=settle)
    ours = _search(attack, victim, x, norm=norm, radius=radius)
    fallen = victim.broken(net(theirs))
    assert 0 < int(fallen.sum()) < len(x)
    assert torch.equal(victim.broken(net(ours)), fallen)


@pytest.mark.parametrize("norm", NORMS)
def test_fab_agrees_with_the_reference_on_real_images(real_data, norm):
    """On a published robust network each verdict is pyautoattack's, and norms are close."""
    victim, x = real_victim(real_data, 16)
    radius = {"linf": 2 / 255, "l2": 0.25, "l1": 6.0}[norm]
    keys = {"n_iter": 8, "targeted": True, "n_target_classes": 2}
    _, theirs = _reference(victim.net, x, victim.y, norm=norm, radius=radius, **keys)
    attack = make(FABT, steps=8, targets=2)
    ours = _search(attack, victim, x, norm=norm, radius=radius)
    fallen = victim.broken(victim.net(theirs))
    assert torch.equal(victim.broken(victim.net(ours)), fallen)
    # The reference stops at the first target whose point is inside the radius, we at the nearest.
    lengths = [norms.norm(found - x, norm)[fallen] for found in (ours, theirs)]
    assert bool((lengths[0] <= lengths[1] * (1 + 1e-3) + 1e-7).all())


@pytest.mark.parametrize("cls", [FAB, FABT])
@pytest.mark.parametrize("norm", NORMS)
def test_fab_is_exact_on_a_linear_classifier(cls, norm):
    """Without a domain the boundary's distance is known: at most the overshoot is added to it."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.requires_grad_(requires_grad=False)
    x = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    logits = net(x)
    y = logits.argmax(1)
    weight = net[1].weight
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    distances = torch.stack([
        torch.where(y == other, torch.inf, (logits.gather(1, y[:, None])[:, 0] - logits[:, other])
                    / norms.norm(weight[other] - weight[y], dual).clamp_min(1e-9))
        for other in range(4)
    ]).amin(0)  # fmt: skip
    found = _search(make(cls, steps=20), NetVictim(net, y), x, norm=norm, domain=None)
    lengths = norms.norm(found - x, norm)
    assert bool((lengths >= distances * (1 - 1e-9)).all())
    assert bool((lengths <= distances * 1.05).all())
    assert bool(net(found).argmax(1).ne(y).all())


@pytest.mark.parametrize("cls", [FAB, FABT])
@given(norm=st.sampled_from(tuple(NORMS)), radius=st.sampled_from([0.01, 0.1, 0.5, FREE]))
def test_fab_returns_broken_points_or_the_inputs_themselves(cls, norm, radius):
    """A sample that is not broken within the radius comes back bit for bit."""
    net, x, y = trained()
    victim = NetVictim(net, y[:6])
    found = _search(make(cls, steps=4), victim, x[:6], norm=norm, radius=radius)
    moved = (found != x[:6]).flatten(1).any(1)
    assert torch.equal(net(found).argmax(1).ne(y[:6]), moved)
    assert bool((norms.norm(found - x[:6], norm) <= radius).all())


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_restarts_and_targets_never_lengthen_what_is_found(norm):
    """The nearest point so far is kept over steps, restarts and targets."""
    net, x, y = trained()
    victim = NetVictim(net, y)
    lengths = [
        norms.norm(_search(make(FABT, **keys), victim, x, norm=norm) - x, norm)
        for keys in (
            {"steps": 3, "targets": 1}, {"steps": 6, "targets": 1}, {"steps": 6, "targets": 4},
            {"steps": 6, "targets": 4, "restarts": 3},
        )
    ]  # fmt: skip
    assert bool((lengths[0] > 0).all())
    for more, less in zip(lengths[1:], lengths, strict=False):
        # A sample that was not broken came back as it was.
        assert bool((more <= torch.where(less == 0, torch.inf, less)).all())


def test_fab_settles_for_fewer_evaluations_and_the_same_verdicts():
    """Samples that are broken within the radius leave at once, and take no further evaluation."""
    net, x, y = trained()
    found, asked = [], []
    for settle in (False, True):
        victim = NetVictim(net, y)
        attack = make(FABT, steps=10, targets=4, settle=settle)
        found.append(_search(attack, victim, x, norm="linf", radius=0.1))
        asked.append(sum(victim.asked))
    fallen = [net(one).argmax(1).ne(y) for one in found]
    assert torch.equal(*fallen)
    share = float(fallen[0].float().mean())
    assert asked[1] < asked[0] * (1 - 0.8 * share)


def test_fab_works_where_samples_cannot_be_taken_apart():
    """A victim whose `rows` is None is searched as a whole, and the same samples fall."""
    net, x, y = trained()
    for settle in (False, True):
        attack = make(FABT, steps=8, targets=4, settle=settle)
        whole, apart = (
            _search(attack, NetVictim(net, y, apart=is_apart), x, norm="linf", radius=0.1)
            for is_apart in (False, True)
        )
        assert torch.equal(net(whole).argmax(1).ne(y), net(apart).argmax(1).ne(y))


def test_fab_settles_at_the_first_broken_point_under_an_infinite_radius():
    """All are searched until they are broken, and no longer."""
    net, x, y = trained()
    victim = NetVictim(net, y)
    found = _search(make(FABT, steps=50, targets=4, settle=True), victim, x, norm="l2")
    assert bool(net(found).argmax(1).ne(y).all())
    assert sum(victim.asked) < 8 * len(x)


@pytest.mark.parametrize("cls", [FAB, FABT])
def test_fab_leaves_samples_that_are_wrong_already(cls):
    """They come back bit for bit, and are never evaluated again."""
    net, x, y = trained()
    wrong = (y + 1) % 5
    victim = NetVictim(net, wrong)
    found = _search(make(cls, steps=5), victim, x, norm="l2")
    assert torch.equal(found, x)
    assert victim.asked == [len(x)]


def test_fab_takes_gradients_of_the_input_alone():
    """Parameters that want gradients get none, and everything is as it was."""
    net, x, y = trained()
    net.requires_grad_(requires_grad=True)
    try:
        with leaves("fab", net, inputs={"x": x}):
            for cls in (FAB, FABT):
                _search(make(cls, steps=3), NetVictim(net, y), x, norm="linf", radius=0.1)
        assert all(parameter.grad is None for parameter in net.parameters())
    finally:
        net.requires_grad_(requires_grad=False)


def test_fab_is_the_same_in_another_range_of_values():
    """In [-1, 1] the perturbation is twice that in [0, 1]."""
    net, x, y = trained()
    shifted = nn.Sequential(_FromSigned(), net)
    small = _search(make(FAB, steps=10), NetVictim(net, y), x, norm="l2")
    large = _search(
        make(FAB, steps=10), NetVictim(shifted, y), 2 * x - 1, norm="l2", domain=Domain(-1.0, 1.0)
    )
    torch.testing.assert_close((large + 1) / 2, small, rtol=0, atol=1e-4)


class _FromSigned(nn.Module):
    """Values in [-1, 1] brought to [0, 1]."""

    def forward(self, x):
        """Images [B, ...] in [0, 1]."""
        return (x + 1) / 2


@pytest.mark.parametrize("classes", [2, 3])
def test_fab_with_few_classes_needs_no_more_targets_than_there_are(classes):
    """With two classes there is one other class, whatever the settings."""
    net, x, y = trained(classes)
    found = [_search(make(cls, steps=10), NetVictim(net, y), x, norm="linf") for cls in (FAB, FABT)]
    for one in found:
        assert bool(net(one).argmax(1).ne(y).all())
    assert FABT.minimal_norm
    assert FAB.minimal_norm


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_begin_at_random_points_keyed_by_sample(norm):
    """Half as far as the nearest point so far, and the same whatever else is searched."""
    net, x, y = trained()

    def second_start(rows, seed):
        seen = []
        victim = NetVictim(lambda at: (seen.append(at.detach()), net(at))[1], y[rows])
        attack = make(FABT, steps=1, restarts=2, targets=1)
        rng = draws(len(x), seed).rows(torch.arange(len(x))[rows])
        # Clean, first gradient, its verdict, second gradient.
        budget = Budget(norm, FREE, "image")
        found = attack.run(victim, x[rows], budget, domain=UNIT, rng=rng)
        return seen[3], found

    start, found = second_start(slice(None), 0)
    length, nearest = (norms.norm(at - x, norm) for at in (start, found))
    assert bool((length > 0).all())
    assert bool((length <= 0.5 * nearest * 1.2 + 1e-6)[nearest > 0].all())
    torch.testing.assert_close(second_start(slice(3, 9), 0)[0], start[3:9], rtol=0, atol=1e-5)
    assert not torch.equal(second_start(slice(None), 1)[0], start)
