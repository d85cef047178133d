"""AutoAttack: its versions, what its members are told, and its reference sample by sample."""

import pytest
import torch
from advdiff_attacks.autoattack import VERSIONS, AutoAttack
from helpers_peer import (
    UNIT,
    Victim,
    attacked,
    beaten,
    pictures,
    right_pictures,
    robust_net,
    small_net,
)

from advdiff_core import Budget, Build, SampleDraws


def made(**keys):
    """An AutoAttack with these keys."""
    return AutoAttack(AutoAttack.Settings(**keys), Build())


def keys_of(attack):
    """Steps, restarts, targets, queries and passes of each member, as far as it has them."""
    names = ("steps", "restarts", "targets", "queries", "eot", "enlarge")
    return {
        name: {key: getattr(one.settings, key) for key in names if hasattr(one.settings, key)}
        for name, one in attack.members().items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_members_are_those_of_the_version_in_order(version):
    """The attacks that the paper's versions have, and the fast one without the slow two."""
    assert tuple(made(version=version).members()) == VERSIONS[version]


def test_the_standard_version_has_the_settings_of_the_reference():
    """100 steps; one restart, nine targets, or five of both in L1 (0); 5000 queries."""
    found = keys_of(made())
    assert found["apgd-ce"] == {"steps": 100, "restarts": 0, "eot": 1, "enlarge": True}
    wanted = {"steps": 100, "restarts": 1, "targets": 0, "eot": 1, "enlarge": True}
    assert found["apgd-t"] == wanted
    assert found["fab-t"] == {"steps": 100, "restarts": 1, "targets": 9}
    assert found["square"] == {"restarts": 1, "queries": 5000}


def test_plus_and_rand_have_the_settings_of_the_reference():
    """Five restarts of untargeted attacks in plus, twenty passes per point in rand."""
    plus, rand = keys_of(made(version="plus")), keys_of(made(version="rand"))
    assert [plus[name]["restarts"] for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    assert plus["apgd-t"]["targets"] == plus["fab-t"]["targets"] == 9
    assert not plus["apgd-ce"]["enlarge"]
    assert {rand[name]["eot"] for name in rand} == {20}


def test_keys_reach_the_members():
    """Steps, targets, restarts, queries, passes and parts are those that are asked for."""
    attack = made(steps=7, targets=2, restarts=3, queries=11, bucket=5, interval=4)
    found = keys_of(attack)
    assert {found[name]["steps"] for name in ("apgd-ce", "apgd-t", "fab-t")} == {7}
    assert found["apgd-t"]["targets"] == found["fab-t"]["targets"] == 2
    assert found["apgd-ce"]["restarts"] == 3
    assert found["square"]["queries"] == 11
    members = attack.members()
    assert {members[name].settings.bucket for name in ("apgd-ce", "apgd-t", "square")} == {5}
    assert {members[name].settings.interval for name in ("apgd-ce", "apgd-t", "square")} == {4}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_fast_version_is_an_upper_bound(norm):
    """What it breaks the standard version breaks as well."""
    net, x = small_net(), pictures(24)
    y = net(x).argmax(1)
    radius = {"linf": 0.008, "l2": 0.12, "l1": 0.5}[norm]
    keys = {"steps": 5, "targets": 1, "restarts": 1, "queries": 30}
    fast, whole = (
        beaten(net, attacked(AutoAttack, {**keys, "version": version}, net, x, y, norm, radius,
                             SampleDraws((0,), range(24))), y)
        for version in ("fast", "standard")
    )  # fmt: skip
    assert (fast <= whole).all()
    assert 0 < int(fast.sum()) < 24


def test_a_sample_gets_the_same_whatever_it_is_attacked_with():
    """With a stream per sample the verdicts of a part are those of the whole."""
    net, x = small_net(), pictures(12)
    net, x = net.double(), x.double()
    y = net(x).argmax(1)
    keys = {"steps": 4, "targets": 2, "queries": 20}
    whole = attacked(AutoAttack, keys, net, x, y, "linf", 0.008, SampleDraws((3,), range(12)))
    some = torch.tensor([7, 2, 10])
    rng = SampleDraws((3,), some.tolist())
    part = attacked(AutoAttack, keys, net, x[some], y[some], "linf", 0.008, rng)
    torch.testing.assert_close(part, whole[some], rtol=0, atol=1e-9)


def test_samples_that_are_beaten_already_are_not_attacked():
    """A model that is always wrong is asked twice about each sample: once to judge, once more."""
    net, x = small_net(), pictures(5)
    victim = Victim(net, (net(x).argmax(1) + 1) % 5)
    rng = SampleDraws((0,), range(5))
    found = made().run(victim, x, Budget("linf", 0.1, "image"), domain=UNIT, rng=rng)
    assert torch.equal(found, x)
    assert victim.counts["samples"] == 5


def test_same_verdicts_as_the_reference_on_real_images(real_data):
    """Of 32 images of CIFAR-10 the same fall to both suites with a few steps each."""
    peer_module = pytest.importorskip("pyautoattack")
    net = robust_net(real_data)
    x, y = right_pictures(real_data, net, 32)
    keys = {"steps": 15, "targets": 3, "queries": 50}
    found = attacked(AutoAttack, keys, net, x, y, "linf", 2 / 255, SampleDraws((0,), range(32)))
    names = ["apgd-ce", "apgd-t", "fab-t", "square"]
    peer = peer_module.AutoAttack(net, norm="Linf", eps=2 / 255, seed=0, version="custom",
                                  attacks=names)  # fmt: skip
    for one in (peer.apgd, peer.apgd_targeted, peer.fab):
        one.n_iter = one.n_iter_orig = keys["steps"]
    for one in (peer.apgd, peer.apgd_targeted):
        # The reference computes its windows when it is made, for a hundred steps.
        steps = keys["steps"]
        one.n_iter_2, one.n_iter_min = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
        one.size_decr = max(int(0.03 * steps), 1)
        one.n_restarts = 1
    peer.fab.n_restarts, peer.square.n_queries = 1, keys["queries"]
    peer.apgd_targeted.n_target_classes = peer.fab.n_target_classes = keys["targets"]
    left = torch.ones(32, dtype=torch.bool)
    for name, one in (("apgd-ce", peer.apgd), ("apgd-t", peer.apgd_targeted),
                      ("fab-t", peer.fab), ("square", peer.square)):  # fmt: skip
        one.seed, one.loss = 0, {"apgd-ce": "ce", "apgd-t": "dlr-targeted"}.get(name, "margin")
        one.targeted = name == "fab-t"
        rows = left.nonzero().squeeze(1)
        left[rows[beaten(net, one.perturb(x[rows], y[rows]), y[rows])]] = False
    assert torch.equal(beaten(net, found, y), ~left)
    assert 0 < int(left.sum()) < 32
