"""The independent check of what attacks return, and what is watched of them on the way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advdiff_core.engine.robust.checker import check_inputs, exact_norm, judge_logits, slack
from advdiff_core.engine.robust.guard import Guard, digest_of, own_randomness
from advdiff_core.engine.robust.watch import Tally, Watched
from advdiff_core.errors import UnsoundError
from advdiff_core.interfaces.classifier import ClassifierVictim
from advdiff_core.math import norms
from advdiff_core.types import Domain

UNIT = Domain(0.0, 1.0)
ORDERS = {"linf": math.inf, "l2": 2, "l1": 1}


def images(count: int = 6, seed: int = 0) -> Tensor:
    """Images [count, 3, 4, 4] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator)


def check(found: Tensor, x: Tensor, **changes: Any) -> Tensor:
    """The check of an attack named "a" in the Linf ball of 0.1."""
    told: dict[str, Any] = {
        "norm": "linf", "radius": 0.1, "domain": UNIT, "attack": "a",
        "ids": list(range(100, 100 + len(x))), **changes,
    }  # fmt: skip
    return check_inputs(found, x, **told)


@pytest.mark.parametrize("norm", ORDERS)
def test_norm_of_the_checker_is_torchs(norm: Any) -> None:
    """By an implementation that neither the checker nor the projections use."""
    delta = images() - images(seed=1)
    wanted = torch.linalg.vector_norm(delta.double(), ORDERS[norm], dim=(1, 2, 3))
    torch.testing.assert_close(exact_norm(delta, norm), wanted, rtol=1e-14, atol=0)


@given(
    norm=st.sampled_from(["linf", "l2", "l1"]), radius=st.floats(1e-3, 2.0),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_check_accepts_every_projection_onto_the_ball(norm: Any, radius: float, seed: int) -> None:
    """Rounding to float32 is no violation, in any norm."""
    x = images(seed=seed)
    delta = norms.project(images(seed=seed + 1) - 0.5, norm=norm, radius=radius)
    found = (x + delta).clamp(0, 1)
    check(found, x, norm=norm, radius=radius)


@pytest.mark.parametrize(
    ("norm", "factor"), [("linf", 1 + 1e-4), ("l2", 1 + 1e-4), ("l1", 1 + 1e-3), ("linf", 2.0)]
)
def test_check_refuses_a_norm_above_the_radius(norm: Any, factor: float) -> None:
    """E09, E10: attack, sample, norm found and radius wanted."""
    x = images() * 0
    delta = torch.ones_like(x)
    delta *= 0.1 / float(exact_norm(delta[:1], norm))
    delta[2] *= factor
    found = 0.1 * factor
    line = (
        rf"attack a, sample 102: the {norm} norm is {found:.3g}\d*, above the radius 0.1 - report"
    )
    with pytest.raises(UnsoundError, match=line) as caught:
        check(x + delta, x, norm=norm)
    assert caught.value.code == "E09"


def test_check_refuses_rounding_of_half_precision() -> None:
    """E09: a detour over float16 or bfloat16 leaves the ball."""
    x = images()
    found = (x + 0.1).clamp(0, 1).to(torch.bfloat16).float()
    with pytest.raises(UnsoundError, match=r"sample 10\d: the linf norm is 0.10\d+, above the rad"):
        check(found, x)


def test_check_refuses_an_input_outside_the_domain() -> None:
    """E09: the range found and the domain."""
    x = images().clamp(0.2, 0.8)
    x[3] = 0.95
    with pytest.raises(
        UnsoundError, match=r"sample 103: lies in \[1.0\d*, 1.0\d*\], outside the d"
    ):
        check(x + 0.1, x)


def test_check_refuses_values_that_are_not_finite() -> None:
    """E09: NaN passes every comparison, but not the check."""
    x = images()
    found = x.clone()
    found[1, 0, 0, 0] = torch.nan
    with pytest.raises(UnsoundError, match="sample 101: the attack returned values that are not f"):
        check(found, x)


def test_check_refuses_another_shape() -> None:
    """E09: one input per sample."""
    with pytest.raises(UnsoundError, match=r"returned shape \[5, 3, 4, 4\], wanted \[6, 3, 4, 4\]"):
        check(images()[:5], images())


def test_check_of_no_radius_takes_any_norm() -> None:
    """Minimal perturbations are searched without a radius; the domain holds."""
    x = images()
    assert float(check(1 - x, x, radius=math.inf).max()) > 0.9


def test_slack_is_a_millionth_of_the_radius_and_a_last_place() -> None:
    """In closed form for each norm."""
    eps = 2.0**-23
    assert slack(0.5, "linf", size=100) == pytest.approx(5e-7 + eps)
    assert slack(0.5, "l2", size=100) == pytest.approx(5e-7 + 10 * eps)
    assert slack(0.5, "l1", size=100, largest=4.0) == pytest.approx(5e-7 + 400 * eps)


class _Marginal(nn.Module):
    """Logits of two classes that differ by less than what the batch's size changes."""

    def forward(self, x: Tensor) -> Tensor:
        gap = 1e-6 * (1 if len(x) == 1 else -1)
        return torch.stack([torch.ones(len(x)), torch.full((len(x),), 1 + gap)], dim=1)


def test_verdicts_that_are_near_to_call_are_made_alone() -> None:
    """E19: the same verdict in a batch of one and of six."""
    for count in (1, 6):
        y = torch.zeros(count, dtype=torch.int64)
        assert bool(judge_logits(_Marginal(), images(count), y).broken.all())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_verdict_on_logits_that_are_not_finite_is_broken(wrong: float) -> None:
    """E16: never counted as robust, whatever argmax makes of them."""

    def network(x: Tensor) -> Tensor:
        logits = torch.tensor([[3.0, 0.0, 0.0]]).repeat(len(x), 1)
        logits[:, 2] = torch.where(x.flatten(1)[:, 0] > 0.5, wrong, 0.0)
        return logits

    x = torch.tensor([0.0, 1.0, 0.2]).reshape(3, 1)
    found = judge_logits(network, x, torch.zeros(3, dtype=torch.int64))
    assert found.broken.tolist() == [False, True, False]
    assert found.finite.tolist() == [True, False, True]


def test_verdict_of_one_class_is_never_broken() -> None:
    """A single logit has no rival."""
    found = judge_logits(lambda x: x[:, :1], torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))
    assert found.broken.tolist() == [False, False]


def _watched(x: Tensor) -> tuple[Watched, Tally]:
    """A classifier of two classes by the sign of the first value, class 1 above zero."""
    weight = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    tally = Tally(seen=torch.zeros(len(x), dtype=torch.bool))
    labels = (x[:, 0] > 0).long()
    victim = ClassifierVictim(network=lambda x: x @ weight.T, labels=labels)
    return Watched(victim, x, norm="linf", limit=0.5, tally=tally), tally


def test_watched_victim_counts_samples_and_gradients() -> None:
    """Forwards and gradients of single samples, those of parts included."""
    x = torch.tensor([[0.2, 0.0], [-0.2, 0.0], [2.0, 0.0]])
    watched, tally = _watched(x)
    moved = x.clone().requires_grad_()
    torch.autograd.grad(watched.loss(watched.outputs(moved)).sum(), moved)
    part = watched.rows(torch.tensor([2, 0]))
    assert part is not None
    part.outputs(x[[2, 0]])
    assert (tally.forwards, tally.gradients) == (5, 3)
    assert part.labels is not None
    assert part.labels.tolist() == [1, 1]


def test_watched_victim_remembers_what_was_broken_inside_the_budget() -> None:
    """E12: rows of parts are put in their place; what lies outside the ball does not count."""
    x = torch.tensor([[0.2, 0.0], [-0.2, 0.0], [2.0, 0.0]])
    watched, tally = _watched(x)
    watched.outputs(x)
    assert tally.seen.tolist() == [False, False, False]
    watched.outputs(-x)
    assert tally.seen.tolist() == [True, True, False]
    watched, tally = _watched(x)
    part = watched.rows(torch.tensor([1, 2]))
    assert part is not None
    part.outputs(-x[1:])
    assert tally.seen.tolist() == [False, True, False]


def test_watched_victim_without_parts_has_none() -> None:
    """A victim that cannot be taken apart stays whole."""
    watched, _ = _watched(torch.ones(2, 2))
    watched.victim = _Whole()
    assert watched.rows(torch.tensor([0])) is None


class _Whole:
    labels = None

    def rows(self, rows: Tensor) -> None:
        del rows

    def outputs(self, x: Tensor) -> Tensor:
        return x

    def loss(self, outputs: Tensor) -> Tensor:
        return outputs.sum(1)

    def broken(self, outputs: Tensor) -> None:
        del outputs


CHANGES = {
    "tensor 0.weight": lambda net: net[0].weight.data.add_(1e-7),
    "tensor 1.running_mean": lambda net: net[1].running_mean.add_(1e-7),
    "requires_grad of 0.bias": lambda net: net[0].bias.requires_grad_(True),
    "gradient of 0.weight": lambda net: setattr(net[0].weight, "grad", net[0].weight.data.clone()),
    "the mode of 1": lambda net: net[1].train(),
    "the mode of the network": lambda net: setattr(net, "training", True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_guard_names_what_an_attack_changed(what: str) -> None:
    """E17: parameters, buffers, gradients, flags, modes of every part."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval().requires_grad_(False)
    guard = Guard(net)
    guard.check("a")
    CHANGES[what](net)
    with pytest.raises(
        UnsoundError, match=f"attack a: changed the network: {what} is not what"
    ) as e:
        guard.check("a")
    assert e.value.code == "E17"


def test_digest_names_the_weights() -> None:
    """E23: equal for equal weights, other for the least change and for another name."""
    net, same = nn.Linear(2, 2), nn.Linear(2, 2)
    same.load_state_dict(net.state_dict())
    assert digest_of(net) == digest_of(same)
    assert digest_of(net) != digest_of(nn.Sequential(net))
    with torch.no_grad():
        same.weight[0, 0] = torch.nextafter(same.weight[0, 0], torch.tensor(9.0))
    assert digest_of(net) != digest_of(same)


def test_randomness_of_an_attack_is_its_own() -> None:
    """E17: torch's global state is put back, and drawing from it is refused."""
    tally = Tally(seen=torch.zeros(1, dtype=torch.bool))
    before = torch.get_rng_state()
    with (
        pytest.raises(UnsoundError, match="attack a: drew from torch's global random generator"),
        own_randomness(("k",), torch.device("cpu"), tally, "a"),
    ):
        torch.rand(1)
    assert torch.equal(before, torch.get_rng_state())


def test_randomness_of_a_network_is_repeated() -> None:
    """A defence that draws is no fault of the attack, and draws the same when resumed."""
    found = []
    for _ in range(2):
        x = torch.ones(1, 2)
        tally = Tally(seen=torch.zeros(1, dtype=torch.bool))
        victim = ClassifierVictim(
            network=lambda x: x + torch.rand(x.shape), labels=torch.zeros(1, dtype=torch.int64)
        )
        watched = Watched(victim, x, norm="linf", limit=1.0, tally=tally)
        with own_randomness(("k", 1), torch.device("cpu"), tally, "a"):
            found.append(watched.outputs(x))
    assert torch.equal(*found)
    assert tally.drew
