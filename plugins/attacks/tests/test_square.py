"""Square: its schedule, its windows, its bumps, and its reference query by query."""

import pytest
import torch
from advdiff_attacks import square
from advdiff_attacks.square import Square
from advdiff_attacks.square_plan import as_images, bumps, share_of, window_size, windows
from helpers_peer import (
    UNIT,
    Victim,
    attacked,
    beaten,
    peer_square,
    pictures,
    right_pictures,
    robust_net,
    small_net,
)
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core import Budget, Build, Draws
from advdiff_core.math import norms

RADII = {"linf": 0.03, "l2": 0.3, "l1": 1.5}


def draws(count, seed=0):
    """A stream for a whole batch."""
    return Draws((seed, "test"), start=0, size=count, total=count, device="cpu")


def planned(shape=(3, 12, 12), queries=400, bumpy=False, rescale=False):
    """The windows of a search."""
    return windows(shape, queries, share=0.8, rescale=rescale, bumpy=bumpy, draws=draws(1))


def test_window_sizes_follow_the_schedule_of_the_paper():
    """The sides that the schedule gives images of 32 and of 224 pixels."""
    after = (0, 11, 51, 201, 501, 1001, 2001, 4001)
    for side, wanted in ((32, [29, 20, 14, 10, 7, 5, 4, 3]),
                         (224, [200, 142, 100, 71, 50, 35, 25, 18])):  # fmt: skip
        shares = [share_of(query, 5000, share=0.8, rescale=False) for query in after]
        assert [window_size((side, side), one, bumpy=False)[0] for one in shares] == wanted


def test_a_rescaled_schedule_ends_where_that_of_ten_thousand_queries_does():
    """Half the queries halve the windows twice as early."""
    shares = [share_of(query, 5000, share=0.8, rescale=True) for query in (5, 6, 25, 26, 4001)]
    assert shares == [0.8, 0.4, 0.4, 0.2, 0.8 / 512]


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_windows_lie_inside(height, width, bumpy):
    """No window sticks out of an image, whatever its shape."""
    plan = planned((1, height, width), queries=300, bumpy=bumpy)
    for places in (plan.places, plan.seconds):
        for (rows, columns), (top, left) in zip(plan.sizes, places, strict=True):
            assert 0 <= top <= height - rows
            assert 0 <= left <= width - columns


def test_the_last_row_and_column_are_used():
    """A window reaches the lower right corner, which the reference never does."""
    plan = planned(queries=3000)
    ends = {
        (top + rows, left + columns)
        for (rows, columns), (top, left) in zip(plan.sizes, plan.places, strict=True)
        if rows < 6
    }
    assert (12, 12) in ends


@pytest.mark.parametrize(("power", "norm"), [(2, "L2"), (4, "L1")])
@pytest.mark.parametrize("side", [1, 3, 5, 6, 13])
def test_bumps_are_those_of_the_reference(power, norm, side):
    """Up to a transposition, which is drawn; of unit norm."""
    peer_module = pytest.importorskip("pyautoattack.square")
    peer = peer_module.SquareAttack(None, norm=norm, eps=1.0, device="cpu")
    here, there = bumps(side, side, power).float(), peer.eta(side)
    assert torch.allclose(here, there, atol=1e-6) or torch.allclose(here.T, there, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6), (2, 3, 4, 6), (2, 3, 5, 4, 6)])
def test_any_shape_is_seen_as_images(shape):
    """Vectors are one row, sequences rows of channels, videos have more channels."""
    x = torch.rand(shape)
    seen = as_images(x)
    assert seen.dim() == 4
    assert seen.shape[0] == 2
    assert torch.equal(seen.reshape(shape), x)


class Watched(Victim):
    """A victim that notes the margin of everything that it is asked about."""

    def rows(self, rows):
        """The same network for some samples, noted together."""
        return Watched(self.net, self.labels[rows], self.counts)

    def outputs(self, x):
        """Logits."""
        logits = super().outputs(x)
        own = logits.gather(1, self.labels[:, None])
        others = logits.scatter(1, self.labels[:, None], -torch.inf).amax(1, keepdim=True)
        self.counts.setdefault("margins", []).append((others - own)[:, 0])
        return logits


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("size", [(3, 12, 12), (1, 9, 14), (3, 4, 21)])
def test_the_best_of_all_proposals_is_returned(norm, size):
    """Of the largest margin, or the first that broke the sample; on images of any shape."""
    net, x = small_net(size), pictures(6, size)
    victim = Watched(net, net(x).argmax(1))
    attack = Square(Square.Settings(queries=40, interval=0), Build())
    budget = Budget(norm, 0.5 * RADII[norm], "image")
    found = attack.run(victim, x, budget, domain=UNIT, rng=draws(6))
    assert (norms.norm(found - x, norm) <= budget.radius + 1e-4).all()
    margins = torch.stack(victim.counts["margins"])
    victim.outputs(found)
    end = victim.counts["margins"][-1]
    broken = margins > 0
    first = margins.gather(0, broken.int().argmax(0)[None])[0]
    wanted = torch.where(broken.any(0), first, margins.amax(0))
    assert not broken.all(1).any()
    torch.testing.assert_close(end, wanted, rtol=0, atol=1e-4)


def test_linf_points_are_corners():
    """Every pixel is at an end of its range, but for samples that nothing helped."""
    net, x = small_net(), pictures(5)
    y = net(x).argmax(1)
    found = attacked(Square, {"queries": 30}, net, x, y, "linf", 0.003, draws(5))
    low, high = (x - 0.003).clamp(0, 1), (x + 0.003).clamp(0, 1)
    ends = torch.minimum((found - low).abs(), (found - high).abs()).flatten(1).amax(1)
    assert ((ends < 1e-6) | (found == x).flatten(1).all(1)).all()


def test_it_asks_once_a_query_and_drops_what_is_broken():
    """A start and as many queries as there are, and none for samples that are broken."""
    net, x = small_net(), pictures(30)
    y = net(x).argmax(1)
    asked = {}
    for interval in (0, 2):
        victim = Victim(net, y)
        attack = Square(Square.Settings(queries=40, interval=interval), Build())
        found = attack.run(victim, x, Budget("linf", 0.03, "image"), domain=UNIT, rng=draws(30))
        asked[interval] = victim.counts["samples"], beaten(net, found, y)
    assert asked[0][0] == 30 * 42
    assert torch.equal(asked[0][1], asked[2][1])
    assert asked[2][0] < 30 * 42
    assert 0 < int(asked[0][1].sum()) < 30


def duel(net, x, y, norm, radius, queries, monkeypatch):
    """What Square finds, and what the reference finds with the same windows, signs and shapes."""
    plans = []

    def kept(*words, **keys):
        plans.append(windows(*words, **keys))
        return plans[-1]

    monkeypatch.setattr(square, "windows", kept)
    rng = draws(len(x))
    found = attacked(Square, {"queries": queries}, net, x, y, norm, radius, rng)
    again = rng.child("restart", 0)
    side = max(min(x.shape[2:]) // 5, 1)
    grid = (x.shape[2] // side) * (x.shape[3] // side)
    peer = peer_square(net, norm, radius, plans[0], again, len(x), x.shape[1], x.shape[3], grid)
    return found, peer.perturb(x.clone(), y.clone())


@pytest.mark.parametrize("norm", RADII)
def test_it_walks_the_way_of_the_reference(norm, monkeypatch):
    """With the reference's windows, signs and shapes it ends at the reference's points."""
    pytest.importorskip("pyautoattack")
    net, x = small_net((3, 10, 10)), pictures(24, (3, 10, 10))
    y = net(x).argmax(1)
    found, peer = duel(net, x, y, norm, RADII[norm], 60, monkeypatch)
    here, there = beaten(net, found, y), beaten(net, peer, y)
    assert torch.equal(here, there)
    assert 2 < int(here.sum()) < 22
    torch.testing.assert_close(found[here], peer[here], rtol=0, atol=1e-4)


def test_it_walks_the_way_of_the_reference_on_real_images(real_data, monkeypatch):
    """Of 32 images of CIFAR-10 the same fall, at the same points."""
    pytest.importorskip("pyautoattack")
    net = robust_net(real_data)
    x, y = right_pictures(real_data, net, 32)
    found, peer = duel(net, x, y, "linf", 2 / 255, 100, monkeypatch)
    here = beaten(net, found, y)
    assert torch.equal(here, beaten(net, peer, y))
    assert 0 < int(here.sum()) < 32
    torch.testing.assert_close(found[here], peer[here], rtol=0, atol=1e-6)
