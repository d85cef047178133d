"""Attacks on victims that answer at random or whose gradients tell nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from advdiff_attacks.eot import EOT, seeded
from advdiff_attacks.objectives import margin
from advdiff_attacks.spsa import SPSA
from advdiff_attacks.steps import FGSM, PGD
from torch import Tensor

from advdiff_core import Budget

sys.path.insert(0, str(Path(__file__).parent))
from attack_cases import UNIT, FunctionVictim, attack, draws, linear, spec

BALL = Budget("linf", 0.1, "image")


class NoisyVictim(FunctionVictim):
    """A linear classifier that adds noise of torch's global generator to its logits."""

    def __init__(self, y: Tensor, scale: float = 1.0, seen: list[Tensor] | None = None) -> None:
        super().__init__(linear(), y)
        self.scale, self.seen = scale, [] if seen is None else seen

    def outputs(self, x: Tensor) -> Tensor:
        """Logits and noise, which is remembered."""
        noise = self.scale * torch.randn(len(x), 3, dtype=x.dtype)
        self.seen.append(noise)
        return self.logits(x) + noise

    def rows(self, rows: Tensor) -> NoisyVictim:
        """Some samples."""
        return NoisyVictim(self.labels[rows], self.scale, self.seen)


class WholeNoisyVictim(NoisyVictim):
    """The same, and cannot be taken apart."""

    def rows(self, rows: Tensor) -> None:
        """Nothing."""


def points(size: int = 6) -> Tensor:
    """Inputs [size, 3, 2, 2] in [0.3, 0.7], float64."""
    generator = torch.Generator().manual_seed(3)
    return 0.3 + 0.4 * torch.rand(size, 3, 2, 2, generator=generator, dtype=torch.float64)


def eot(nested=FGSM, use="fgsm", *, samples=4, noise="fresh", at_once=0, share=0.5, **keys):
    """EOT around an attack."""
    return attack(
        EOT, nested=spec(nested, use, **keys), samples=samples, noise=noise, at_once=at_once,
        broken_share=share,
    )  # fmt: skip


@pytest.mark.parametrize("victim_class", [NoisyVictim, WholeNoisyVictim])
def test_the_gradient_is_the_mean_over_all_draws(victim_class) -> None:
    """One FGSM step in L2 along the mean of the gradients of the draws it saw."""
    x, y = points(), torch.arange(6) % 3
    victim = victim_class(y)
    budget = Budget("l2", 0.1, "image")
    found = eot(keep="last").run(victim, x, budget, domain=None, rng=draws(6))
    noise = torch.cat([part.reshape(-1, 6, 3) for part in victim.seen])[-4:]
    leaf = x.clone().requires_grad_()
    losses = [F.cross_entropy(linear()(leaf) + one, y, reduction="none") for one in noise]
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(0).sum(), leaf)
    length = gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found, x + 0.1 * gradient / length, rtol=1e-6, atol=1e-7)


def test_the_verdict_and_the_best_point_rest_on_all_draws() -> None:
    """A sample that a few unlucky draws break is not broken; the share says how many it takes."""
    x = points(40)
    y = linear()(x).argmax(1)
    with seeded(torch.device("cpu"), "judge"):
        wrong = torch.stack([NoisyVictim(y, 0.5).outputs(x).argmax(1) != y for _ in range(4000)])
    share = wrong.double().mean(0)
    found = {}
    for limit in (0.0, 0.5, 0.9):
        keys = {"start": "none", "steps": 1, "drop_broken": True}
        one = eot(PGD, "pgd", samples=200, share=limit, noise="frozen", **keys)
        moved = one.run(NoisyVictim(y, 0.5), x, BALL, domain=UNIT, rng=draws(40))
        # What is beaten at the clean point is left there.
        found[limit] = (moved == x).flatten(1).all(1)
    assert found[0.0].all()
    assert torch.equal(found[0.5][share > 0.7], torch.ones(int((share > 0.7).sum())).bool())
    assert not found[0.5][share < 0.3].any()
    assert (share[found[0.9]] > 0.8).all()
    assert 5 < int((share < 0.3).sum()) < 39
    assert (share > 0.45).any()


def test_a_lucky_draw_does_not_choose_the_best_point() -> None:
    """A gain of 0.25 under noise of 2: single draws choose at random, the mean of 2000 does not."""
    x, y = torch.full((60, 1), 0.5, dtype=torch.float64), torch.zeros(60, dtype=torch.long)

    def hill(at: Tensor) -> Tensor:
        other = -100 * (at[:, 0] - 0.55).square() + 2 * torch.randn(len(at), dtype=at.dtype)
        return torch.stack([torch.full_like(other, 9.0), other], 1)

    right = []
    for samples in (1, 2000):
        one = eot(PGD, "pgd", samples=samples, start="none", steps=2, step_scale=0.5, loss="margin")
        found = one.run(FunctionVictim(hill, y), x, BALL, domain=UNIT, rng=draws(60))
        right.append(int((found[:, 0] - 0.55).abs().lt(1e-6).sum()))
    assert right[0] < 45
    assert right[1] >= 57


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_noise_is_fresh_or_frozen_as_asked(at_once: int) -> None:
    """Frozen: every question meets the same draws. Fresh: none meets those of another."""
    x, y = points(), torch.arange(6) % 3
    for noise in ("fresh", "frozen"):
        victim = NoisyVictim(y)
        one = eot(PGD, "pgd", noise=noise, at_once=at_once, steps=3, keep="last")
        one.run(victim, x, BALL, domain=UNIT, rng=draws(6))
        asked = torch.cat([part.reshape(-1, 6, 3) for part in victim.seen]).unflatten(0, (-1, 4))
        assert len(asked) == 4, "the clean points, and three steps"
        assert all(torch.equal(asked[0], other) for other in asked) == (noise == "frozen")
        assert len({float(one) for one in asked.flatten()}) == (72 if noise == "frozen" else 288)


def test_the_callers_generator_is_untouched_and_searches_repeat() -> None:
    """Whatever the global generator held before; another stream of the attack finds another."""
    x, y = points(), torch.arange(6) % 3
    found = []
    for seed, key in ((0, "a"), (1, "a"), (0, "b")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            one = eot(PGD, "pgd", samples=2, steps=3, step_scale=0.6, keep="last")
            found.append(one.run(NoisyVictim(y), x, BALL, domain=UNIT, rng=draws(6, key)))
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_on_a_victim_without_randomness_eot_is_the_attack_itself() -> None:
    """Each draw says the same."""
    x, y = points(), torch.arange(6) % 3
    plain = attack(PGD, steps=4, loss="dlr", restarts=2)
    wrapped = eot(PGD, "pgd", samples=3, steps=4, loss="dlr", restarts=2)
    ours, expected = (
        one.run(FunctionVictim(linear(), y), x, BALL, domain=UNIT, rng=draws(6))
        for one in (wrapped, plain)
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert wrapped.norms == plain.norms
    assert wrapped.cost() == (3 * (plain.cost().probes + 1), 3 * plain.cost().input_backwards)


def test_spsa_estimates_the_gradient() -> None:
    """On a linear margin, the mean over many pairs is the gradient (Uesato et al. 2018)."""
    logits, x = linear(classes=2), points(2)
    y = torch.zeros(2, dtype=torch.long)
    spsa = attack(SPSA, steps=1, samples=4000, at_once=1000, drop_broken=False)
    seen = []
    original = spsa._slope
    spsa._slope = lambda *args: seen.append(original(*args)) or seen[-1]
    spsa.run(FunctionVictim(logits, y), x, BALL, domain=UNIT, rng=draws(2))
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(margin(logits(leaf), y).sum(), leaf)
    # Each coordinate is off by |g| / sqrt(pairs) at most, four times over.
    limit = 4 * float(gradient[0].norm()) / 4000**0.5
    assert float((seen[0] - gradient).abs().max()) < limit


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_spsa_breaks_what_hides_its_gradient(norm: str) -> None:
    """Inputs rounded in the forward: PGD gets zeros, differences do not."""
    logits, x = linear(), points(12)
    hidden = lambda at: logits((at * 50).round() / 50)  # noqa: E731
    y = hidden(x).argmax(1)
    budget = Budget(norm, 0.3, "image")
    beaten = {}
    for component, keys in ((PGD, {"steps": 10}), (SPSA, {"steps": 25, "samples": 32, "lr": 0.02})):
        victim = FunctionVictim(hidden, y)
        keys = {**keys, "start": "none"} if component is PGD else keys
        found = attack(component, **keys).run(victim, x, budget, domain=UNIT, rng=draws(12))
        beaten[component] = int(victim.broken(hidden(found)).sum())
    assert beaten[PGD] == 0
    assert beaten[SPSA] >= 6
