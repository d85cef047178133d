"""Auto-PGD: its schedule, its invariants, its projection, and its reference step by step."""

import itertools

import pytest
import torch
from advdiff_attacks.apgd import APGDCE, APGDDLR, APGDT
from advdiff_attacks.apgd_moves import move_of
from advdiff_attacks.apgd_run import Plan, run
from advdiff_attacks.apgd_state import State, checkpoints
from advdiff_attacks.boxed_l1 import project_boxed_l1
from advdiff_attacks.buckets import Buckets
from advdiff_attacks.objectives import objective_of
from helpers_peer import (
    UNIT,
    TorchDraws,
    Victim,
    attacked,
    beaten,
    peer_apgd,
    pictures,
    right_pictures,
    robust_net,
    small_net,
)
from hypothesis import given
from hypothesis import strategies as st

from advdiff_core import Budget, Build, Draws
from advdiff_core.math import norms

RADII = {"linf": 0.01, "l2": 0.15, "l1": 0.8}


def draws(count, seed=0):
    """A stream for a whole batch."""
    return Draws((seed, "test"), start=0, size=count, total=count, device="cpu")


def scene(count=12, radius=None, seed=0):
    """A network, images and the classes it gives them, some of which are made wrong."""
    net, x = small_net(seed=seed), pictures(count, seed=seed + 1)
    return net, x, net(x).argmax(1)


def test_checkpoints_are_those_of_the_paper():
    """Windows of 22 %, each 3 % shorter, down to 6 %; of ten steps every one from the second on."""
    assert list(checkpoints(100, sparse=False)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(10, sparse=False)) == [2, *range(3, 11)]
    assert list(checkpoints(100, sparse=True)) == list(range(4, 101, 4))


@given(st.integers(0, 300), st.booleans())
def test_windows_between_checkpoints_add_up(steps, sparse):
    """Each checkpoint looks back to the one before, and none lies behind the last step."""
    looks = checkpoints(steps, sparse=sparse)
    ends = [0, *looks]
    assert [after - before for before, after in itertools.pairwise(ends)] == [*looks.values()]
    assert ends[-1] <= steps


@given(st.integers(1, 500), st.integers(1, 200))
def test_parts_are_of_one_size_and_cover_all(count, size):
    """Parts differ by one sample at most, and none is one and a half times as large as asked."""
    victim = Victim(None, torch.zeros(count, dtype=torch.int64))
    parts = Buckets(victim, count, torch.device("cpu"), size=size).parts
    lengths = [len(part.labels) for _, part in parts]
    assert sum(lengths) == count
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= max(1.5 * size + 1, 1)
    assert [span.stop - span.start for span, _ in parts] == lengths


@given(st.integers(0, 10_000), st.floats(0.01, 3.0), st.sampled_from([UNIT, None]))
def test_projection_onto_ball_and_box_is_the_nearest_point(seed, radius, domain):
    """It is feasible, and no feasible point makes an acute angle with what was cut off."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 7, generator=generator, dtype=torch.float64)
    delta = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    limit = torch.full((3,), radius, dtype=torch.float64)
    near = project_boxed_l1(x, delta, limit, domain)
    assert (near.abs().sum(1) <= radius + 1e-9).all()
    other = torch.randn(200, 3, 7, generator=generator, dtype=torch.float64)
    other = other / other.abs().sum(2, keepdim=True).clamp_min(1e-9)
    other = other * radius * torch.rand(200, 3, 1, generator=generator, dtype=torch.float64)
    if domain is not None:
        assert ((x + near >= -1e-12) & (x + near <= 1 + 1e-12)).all()
        # Shrinking to the box keeps a point in the ball.
        other = (x + other).clamp(0, 1) - x
    assert (((delta - near) * (other - near)).sum(2) <= 1e-7).all()


def test_projection_changes_nothing_inside():
    """A point of ball and box is its own projection."""
    x, delta = torch.full((1, 4), 0.5), torch.tensor([[0.1, -0.2, 0.0, 0.3]])
    torch.testing.assert_close(project_boxed_l1(x, delta, torch.tensor([0.7]), UNIT), delta)


@pytest.mark.parametrize("norm", RADII)
def test_steps_are_halved_and_best_losses_only_grow(norm):
    """Step sizes are the first one over powers of two; the best loss never falls."""
    net, x, y = scene()
    victim, radius = Victim(net, y), torch.full((len(x),), RADII[norm])
    move = move_of(Budget(norm, RADII[norm], "image"), UNIT, 0.75)
    seen = []
    check, step = move.check, move.move

    def watched(state, window):
        check(state, window)
        seen.append((state.step / radius, state.best_loss.clone()))

    def inside(state, index):
        step(state, index)
        length = norms.norm(state.point - state.x, norm)
        assert (length <= state.radius + 1e-5).all()
        assert ((state.point >= 0) & (state.point <= 1)).all()

    move.check, move.move = watched, inside
    target = torch.zeros_like(y)
    state = State.at(x, *move.bounds(x, radius), radius, target, move.start(x, radius, draws(12)))
    plan = Plan(
        move=move, objective=lambda part, _: objective_of(part, "ce"), steps=40, eot=1, bucket=5,
        interval=0, sparse=norm == "l1",
    )  # fmt: skip
    found = run(plan, victim, state)
    losses = torch.stack([loss for _, loss in seen] + [found.loss])
    assert (losses.diff(dim=0) >= 0).all()
    steps = torch.stack([one for one, _ in seen])
    if norm != "l1":
        torch.testing.assert_close((2 / steps).log2(), (2 / steps).log2().round())
    assert steps.min() < steps.max()


@pytest.mark.parametrize("cls", [APGDCE, APGDDLR, APGDT])
@pytest.mark.parametrize("norm", RADII)
def test_dropping_broken_samples_changes_nothing(cls, norm):
    """In float64 any interval and any parts give the same points, and dropping asks less."""
    net, x, y = scene(count=14)
    net, x = net.double(), x.double()
    found, asked = [], []
    for keys in ({"interval": 0, "bucket": 100}, {"interval": 1, "bucket": 4}, {"interval": 3}):
        victim = Victim(net, y)
        attack = cls(cls.Settings(steps=12, **keys), Build())
        budget = Budget(norm, RADII[norm], "image")
        found.append(attack.run(victim, x, budget, domain=UNIT, rng=draws(14)))
        asked.append(victim.counts["samples"])
    broken = beaten(net, found[0], y)
    assert 0 < int(broken.sum()) < 14
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-9)
    assert asked[1] < asked[0]


@pytest.mark.parametrize("cls", [APGDCE, APGDDLR, APGDT])
def test_samples_broken_from_the_start_cost_one_forward(cls):
    """Where the clean points are misclassified they come back, and nothing is searched."""
    net, x, y = scene()
    victim = Victim(net, (y + 1) % 5)
    attack = cls(cls.Settings(), Build())
    found = attack.run(victim, x, Budget("linf", 0.1, "image"), domain=UNIT, rng=draws(12))
    assert torch.equal(found, x)
    assert victim.counts["samples"] == 12


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_targets_are_cut_to_the_classes_there_are(classes):
    """With few classes the targeted search runs towards each other one and breaks samples."""
    net = small_net(classes=classes)
    x = pictures(8)
    y = net(x).argmax(1)
    keys = {"steps": 10, "targets": 9}
    found = attacked(APGDT, keys, net, x, y, "linf", 0.3, draws(8))
    assert beaten(net, found, y).float().mean() > 0.8


def test_restarts_never_make_a_model_look_more_robust():
    """Samples that one restart breaks are broken by more, the first of which is the same."""
    net, x, y = scene(count=20)
    once, thrice = (
        beaten(net, attacked(APGDCE, {"steps": 3, "restarts": n}, net, x, y, "linf", 0.008,
                             draws(20)), y)
        for n in (1, 3)
    )  # fmt: skip
    assert (once <= thrice).all()
    assert once.any()


def test_a_random_victim_is_beaten_by_most_of_its_answers():
    """With eot the verdict is that of most passes, so that one lucky draw breaks nothing."""
    net, x, y = scene(count=6)

    class Lucky(Victim):
        calls = 0

        def rows(self, rows):
            return Lucky(self.net, self.labels[rows], self.counts)

        def broken(self, outputs):
            Lucky.calls += 1
            return torch.full((len(outputs),), Lucky.calls % 5 == 0)

    attack = APGDCE(APGDCE.Settings(steps=4, eot=5, interval=0), Build())
    victim = Lucky(net, y)
    Lucky.calls = 0
    with torch.no_grad():
        net(x)
    found = attack.run(victim, x, Budget("linf", 0.001, "image"), domain=UNIT, rng=draws(6))
    assert not beaten(net, found, y).any()
    loss = victim.loss
    assert (loss(net(found)) >= loss(net(x))).all()


@pytest.mark.parametrize("kind", ["ce", "dlr", "t"])
@pytest.mark.parametrize("norm", RADII)
def test_same_verdicts_as_the_reference_from_the_same_starts(kind, norm):
    """On a small network every sample falls here if it falls there.

    But one in L1, where the reference counts coordinates that rounding moved as moved ones.
    """
    pytest.importorskip("pyautoattack")
    net, x, y = scene(count=40)
    radius, steps = RADII[norm], 20
    cls = {"ce": APGDCE, "dlr": APGDDLR, "t": APGDT}[kind]
    keys = {"steps": steps, **({"targets": 1} if kind == "t" else {})}
    found = attacked(cls, keys, net, x, y, norm, radius, TorchDraws(0))
    peer = peer_apgd(kind, net, norm, radius, steps).perturb(x.clone(), y.clone())
    here, there = beaten(net, found, y), beaten(net, peer, y)
    assert 5 < int(there.sum()) < 35
    assert int((here != there).sum()) <= (norm == "l1")


@pytest.mark.parametrize("kind", ["ce", "t"])
def test_same_verdicts_as_the_reference_on_real_images(real_data, kind):
    """Of 32 images of CIFAR-10 the same fall, on a published adversarially trained network."""
    pytest.importorskip("pyautoattack")
    net = robust_net(real_data)
    x, y = right_pictures(real_data, net, 32)
    cls, keys = (APGDCE, {}) if kind == "ce" else (APGDT, {"targets": 1})
    found = attacked(cls, {"steps": 10, **keys}, net, x, y, "linf", 2 / 255, TorchDraws(0))
    peer = peer_apgd(kind, net, "linf", 2 / 255, 10).perturb(x.clone(), y.clone())
    assert torch.equal(beaten(net, found, y), beaten(net, peer, y))
    assert 0 < int(beaten(net, found, y).sum()) < 32
