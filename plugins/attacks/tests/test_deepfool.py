"""DeepFool goes where foolbox's goes, stops where the class changes, and stays in the domain."""

from __future__ import annotations

import pytest
import torch
from advdiff_attacks.deepfool import DeepFool
from advdiff_attacks.fab import FAB
from helpers_boundary import UNIT, NetVictim, draws, make, real_victim, trained

from advdiff_core import Budget, ContractError
from advdiff_core.math import norms
from advdiff_core.types import Domain

FREE = float("inf")


def _search(attack, victim, x, *, norm, radius=FREE, domain=UNIT):
    budget = Budget(norm, radius, "image")
    return attack.run(victim, x, budget, domain=domain, rng=draws(len(x)))


def _foolbox(net, x, y, norm, **keys):
    foolbox = pytest.importorskip("foolbox")
    cls = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    return cls[norm](loss="logits", **keys)(model, x.clone(), y, epsilons=None)[0]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("candidates", [2, 4])
def test_deepfool_finds_what_foolbox_finds(norm, candidates):
    """The same points, and so the same norms and verdicts."""
    net, x, y = trained()
    victim = NetVictim(net, y)
    theirs = _foolbox(net, x, y, norm, steps=30, candidates=candidates + 1)
    found = _search(make(DeepFool, steps=30, candidates=candidates), victim, x, norm=norm)
    broken = victim.broken(net(theirs))
    assert torch.equal(victim.broken(net(found)), broken)
    assert bool(broken.all())
    torch.testing.assert_close(found, theirs, rtol=0, atol=2e-4)


def test_deepfool_agrees_with_foolbox_on_real_images(real_data):
    """On a published robust network norms differ by less than a hundredth."""
    victim, x = real_victim(real_data, 12)
    theirs = _foolbox(victim.net, x, victim.y, "l2", steps=20, candidates=4)
    found = _search(make(DeepFool, steps=20, candidates=3), victim, x, norm="l2")
    ours, foreign = (norms.norm(at - x, "l2") for at in (found, theirs))
    broken = victim.broken(victim.net(theirs))
    assert torch.equal(victim.broken(victim.net(found)), broken)
    torch.testing.assert_close(ours[broken], foreign[broken], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_an_upper_bound_of_fab(norm):
    """It breaks every sample, and on the whole farther away than FAB does."""
    net, x, y = trained()
    victim = NetVictim(net, y)
    far, near = (
        norms.norm(_search(attack, victim, x, norm=norm) - x, norm)
        for attack in (make(DeepFool), make(FAB, steps=30))
    )
    assert bool((far > 0).all())
    assert float(near.mean()) < float(far.mean())


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("apart", [True, False])
def test_deepfool_gives_clean_inputs_where_the_radius_is_too_small(norm, apart):
    """Of the same search samples come back broken within the radius, or as they were."""
    net, x, y = trained()
    victim = NetVictim(net, y, apart=apart)
    free = _search(make(DeepFool), victim, x, norm=norm)
    lengths = norms.norm(free - x, norm)
    radius = float(lengths.median())
    found = _search(make(DeepFool), victim, x, norm=norm, radius=radius)
    inside = lengths <= radius
    assert 0 < int(inside.sum()) < len(x)
    torch.testing.assert_close(found[inside], free[inside])
    assert torch.equal(found[~inside], x[~inside])


def test_deepfool_scales_with_the_domain():
    """Values in [-1, 1] are moved twice as far as in [0, 1]."""
    net, x, y = trained()
    signed = torch.nn.Sequential(_FromSigned(), net)
    small = _search(make(DeepFool), NetVictim(net, y), x, norm="l2")
    large = _search(
        make(DeepFool), NetVictim(signed, y), 2 * x - 1, norm="l2", domain=Domain(-1.0, 1.0)
    )
    torch.testing.assert_close((large + 1) / 2, small, rtol=0, atol=1e-4)


class _FromSigned(torch.nn.Module):
    """Values in [-1, 1] brought to [0, 1]."""

    def forward(self, x):
        """Images [B, ...] in [0, 1]."""
        return (x + 1) / 2


def test_deepfool_refuses_l1_naming_what_it_knows():
    """The message says which norms there are."""
    net, x, y = trained()
    with pytest.raises(ContractError, match="cannot search in l1, only in l2, linf"):
        _search(make(DeepFool), NetVictim(net, y), x, norm="l1")
