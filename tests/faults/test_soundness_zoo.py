"""Unsound defences and broken attacks are each named, and honest classifiers are left alone."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from helpers_zoo import RADIUS, classifier, digits
from helpers_zoo_defences import DEFENCES, Wrapped
from torch import Tensor, nn

from advdiff_core import Budget, Domain
from advdiff_core.engine.robust.evidence import AttackOutcome, Evidence
from advdiff_core.engine.robust.soundness import Flag, inspect, judge
from advdiff_core.engine.robust.soundness_model import cross_entropy, margin
from advdiff_core.interfaces.classifier import ClassifierVictim

COUNT = 64
LOSSES = {"ce": cross_entropy, "margin": margin}
#: What the message of each flag says, and the mend.
SAYS = {
    "logit-scale": ("the gradient of cross-entropy is zero at ", "the loss margin or dlr"),
    "zero-gradient": ("the gradient of the margin is zero at 32 of 32 inputs", "BPDA"),
    "gradient-cut": ("the gradient does not reach the input: ", "look for detach"),
    "rough-gradient": ("the gradient says nothing of where", "attack with square"),
    "probabilities": ("the outputs of all 64 inputs lie in [0, 1] and sum to 1", "softmax"),
    "randomised": ("the same 64 inputs get other logits when asked again", "attack with eot"),
    "inner-sampling": ("the model draws random numbers 1 times inside one forward", "eot"),
    "train-mode": ("4 layers are in train mode during the evaluation", "eval()"),
    "batch-dependent": ("of their spread with the rest of its batch", "running statistics"),
    "moving-statistics": ("a forward changes 3 buffers", "eval mode"),
    "inner-optimisation": ("asks for gradients 2 times inside one forward", "unrolled"),
    "not-finite": ("clean inputs are not finite", "count as broken"),
    "input-scale": ("it was made for other inputs", "inside the model"),
    "label-map": ("0 of 64 clean inputs are right", "the order of the data's classes"),
    "not-converged": ("that the attacks leave", "more steps and restarts"),
    "silent-success": ("pgd passed ", "keep the best input"),
    "noise-beats-attack": ("20 random points in the ball break ", "look at its steps"),
    "single-step-beats-iterative": ("one step of the whole radius breaks ", "its step size"),
}


@frozen(kw_only=True, eq=False)
class Found:
    """What the attack of these tests found: broken [B], and passed but not returned [B]."""

    broken: Tensor
    silent: Tensor
    runs: int


def wrong(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Samples that a fresh forward misclassifies [B]."""
    with torch.no_grad():
        logits = net(x)
    return (logits.argmax(1) != y) | ~logits.isfinite().all(1)


def ascend(net: nn.Module, x: Tensor, y: Tensor, loss: Any) -> Tensor:
    """Signs of the gradient of a loss [B, ...]; zero if there is none."""
    leaf = x.detach().requires_grad_()
    logits = net(leaf)
    if not logits.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(loss(logits, y).sum(), leaf)[0].nan_to_num().sign()


def pgd(net: nn.Module, x: Tensor, y: Tensor, keys: Mapping[str, Any], seed: int) -> Found:
    """Signed steps on two losses; broken ones: `last`, `back`, `downhill`, `length`, `start`."""
    generator = torch.Generator().manual_seed(seed)
    steps = int(keys["steps"])
    length = keys.get("length", 2.5 * RADIUS / steps) * (-1 if keys.get("downhill") else 1)
    broken, seen = wrong(net, x, y), torch.zeros(len(x), dtype=torch.bool)
    for loss in LOSSES.values():
        delta = RADIUS * (2 * torch.rand(x.shape, generator=generator) - 1)
        delta = delta * keys.get("start", 1.0)
        for _ in range(steps):
            at = (x + delta).clamp(0, 1)
            seen |= wrong(net, at, y)
            delta = (at + length * ascend(net, at, y, loss) - x).clamp(-RADIUS, RADIUS)
        last = wrong(net, (x + keys.get("back", 1.0) * delta).clamp(0, 1), y)
        broken = broken | last if keys.get("last") else broken | seen | last
    return Found(broken=broken, silent=seen & ~broken, runs=2 * len(x) * steps)


def outcome(net: nn.Module, x: Tensor, y: Tensor, keys: Mapping[str, Any]) -> AttackOutcome:
    """The attack on all samples that are right when clean, as an evaluation reports it."""
    tested, found = ~wrong(net, x, y), pgd(net, x, y, keys, 0)
    return AttackOutcome(
        name="pgd", use="pgd", settings=keys, tested=tested, broken=found.broken & tested,
        silent=int((found.silent & tested).sum()), not_finite=0, forwards=found.runs,
        gradients=found.runs,
    )  # fmt: skip


def evidence(net: nn.Module, *, seed: int = 0, **changed: Any) -> Evidence:
    """An evaluation on digits that the classifier was not trained on.

    Args:
        net: The classifier.
        seed: Which digits.
        changed: `keys` of the attack, `count`, `x`, `domain`, `outcomes` in place of theirs.
    """
    order = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
    rows = 1297 + order[: changed.get("count", COUNT)]
    x, y = (part[rows] for part in digits())
    x, keys = changed.get("x", x), changed.get("keys", {"steps": 20})

    def probe(use: str, settings: Mapping[str, Any]) -> Tensor | None:
        return pgd(net, x, y, settings, seed + 1000).broken if use == "pgd" else None

    return Evidence(
        victim=ClassifierVictim(network=net, labels=y), module=net, x=x, y=y, probe=probe,
        budget=Budget("linf", RADIUS), domain=changed.get("domain", Domain(0.0, 1.0)),
        clean=~wrong(net, x, y),
        outcomes=changed["outcomes"] if "outcomes" in changed else (outcome(net, x, y, keys),),
    )  # fmt: skip


def named(flags: list[Flag], code: str) -> Flag:
    """The flag of this code; what it says and the mend are as they should be."""
    found = {flag.code: flag for flag in flags}
    assert code in found, sorted(found)
    message, fix = SAYS[code]
    assert message in found[code].message
    assert fix in found[code].fix
    return found[code]


def defended(name: str) -> nn.Module:
    """A planted defence around the first network that was trained without an adversary."""
    return DEFENCES[name][0](classifier("standard0"))


@pytest.mark.parametrize("name", DEFENCES)
def test_zoo_each_defence_raises_its_own_flag(name: str) -> None:
    """Whatever else is said of it, what is wrong is named, with figures and mend."""
    named(judge(evidence(defended(name))), DEFENCES[name][1])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["standard", "adversarial"])
def test_zoo_healthy_classifiers_raise_no_flag(kind: str, seed: int) -> None:
    """No false alarm over twenty choices of samples, and five networks of each kind."""
    assert judge(evidence(classifier(f"{kind}{seed % 5}"), seed=seed)) == []


def test_zoo_order_in_one_process_changes_nothing() -> None:
    """Neither a flagged model before a healthy one nor the reverse: there is nothing to reset."""
    names = ["optimisation inside", "healthy", "probabilities"]

    def verdicts(order: list[str]) -> dict[str, list[str]]:
        made = {n: classifier("standard0") if n == "healthy" else defended(n) for n in order}
        return {n: [flag.message for flag in judge(evidence(net))] for n, net in made.items()}

    shuffled = random.Random(1).sample(names, len(names))
    assert shuffled != names
    assert verdicts(names) == verdicts(shuffled)
    assert verdicts(["healthy"]) == {"healthy": []}


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"steps": 2, "length": 0.01}, "not-converged"),
        ({"steps": 6, "last": True, "back": 0.0}, "silent-success"),
        ({"steps": 10, "downhill": True}, "noise-beats-attack"),
        ({"steps": 10, "length": 1e-4, "start": 0.0}, "single-step-beats-iterative"),
    ],
)
def test_zoo_each_broken_attack_raises_its_own_flag(keys: dict[str, Any], code: str) -> None:
    """Too few steps, the last iterate, the wrong sign, steps too short; on an honest classifier."""
    named(judge(evidence(classifier("standard0"), keys=keys, count=192)), code)


def told(name: str, broken: range, *, forwards: int = 0, gradients: int = 0, **changed: Any) -> Any:
    """An outcome of 1,000 samples."""
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[list(broken)] = True
    keys: dict[str, Any] = {
        "use": name, "settings": {}, "silent": 0, "not_finite": 0, **changed,
    }  # fmt: skip
    return AttackOutcome(
        name=name, tested=torch.ones(1000, dtype=torch.bool), broken=mask,
        forwards=1000 * forwards, gradients=1000 * gradients, **keys,
    )  # fmt: skip


WHITE = {"forwards": 100, "gradients": 100}


@pytest.mark.parametrize(
    ("outcomes", "code", "says"),
    [
        (
            (told("pgd", range(100), **WHITE), told("square", range(98, 103), forwards=5000)),
            "query-beats-gradient", "square asks for logits alone (5000 times) and breaks 3 of",
        ),
        (
            (told("pgd", range(100), **WHITE), told("transfer", range(103), forwards=1)),
            "transfer-beats-gradient", "transfer does not look at the model and breaks 3 of 1000",
        ),
        (
            (
                told("pgd", range(100), **WHITE),
                told("fgsm", range(103), forwards=1, gradients=1),
            ),
            "single-step-beats-iterative", "fgsm takes one step and breaks 3 of 1000 samples",
        ),
        (
            (told("pgd", range(9), not_finite=4, **WHITE),),
            "not-finite", "samples whose logits are not finite count as broken: 4 by pgd",
        ),
        (
            (told("apgd-dlr", range(9), **WHITE),),
            "few-classes", "apgd-dlr needs 3 classes for its loss, the model has 2",
        ),
        (
            (told("pgd", range(9), settings={"loss": "dlr-targeted"}, **WHITE),),
            "few-classes", "pgd needs 4 classes for its loss, the model has 2",
        ),
    ],
)  # fmt: skip
def test_outcomes_raise_flags_on_what_they_tell(outcomes: Any, code: str, says: str) -> None:
    """Figures of a whole evaluation alone, on more than 0.2 points."""
    from advdiff_core.engine.robust.soundness_outcomes import outcome_flags

    whole = evidence(classifier("standard0"), outcomes=outcomes)
    made = Evidence(
        victim=whole.victim, module=whole.module, x=whole.x, y=whole.y, budget=whole.budget,
        domain=None, clean=torch.ones(1000, dtype=torch.bool), outcomes=outcomes, probe=whole.probe,
    )  # fmt: skip
    (flag,) = outcome_flags(made, classes=2)
    assert flag.code == code
    assert says in flag.message
    assert flag.fix


def test_outcomes_of_two_points_in_a_thousand_raise_no_flag() -> None:
    """The threshold of AutoAttack: 0.2 points are not more than 0.2 points."""
    from advdiff_core.engine.robust.soundness_outcomes import ahead

    newly = torch.arange(1000) < 2
    assert not ahead(newly, 1000, 0.2)
    assert ahead(torch.arange(1000) < 3, 1000, 0.2)
    assert not ahead(torch.arange(100) < 1, 100, 0.2)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"x": 3 * digits()[0][-COUNT:] - 1}, "inputs lie in [-1, 2], their domain is [0.0, 1.0]"),
        ({"domain": Domain(0.0, 255.0)}, "inputs lie in [0, 1], their domain is [0.0, 255.0]"),
    ],
)
def test_inputs_of_another_scale_are_flagged(changed: dict[str, Any], says: str) -> None:
    """Normalised ones, and those that are a corner of their domain."""
    found = judge(evidence(classifier("standard0"), outcomes=(), **changed))
    (flag,) = (flag for flag in found if says in flag.message)
    assert flag.code == "input-scale"
    assert "normalise inside the model" in flag.fix


def test_inspection_leaves_no_trace_and_counts_its_cost() -> None:
    """Parameters, buffers, modes, hooks, random state and tracer are as they were."""
    net = defended("statistics that move")
    asked: list[int] = []
    net.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    made = evidence(net)
    asked.clear()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    state, tracer, hooks = torch.get_rng_state(), sys.gettrace(), len(net._forward_hooks)
    found = inspect(made)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert sys.gettrace() is tracer
    assert len(net._forward_hooks) == hooks
    assert found.forwards == sum(asked)
    assert found.samples == COUNT


def test_random_classifier_is_less_in_doubt_where_an_attack_averaged() -> None:
    """`eot` is the mend; the accuracy still depends on the draw."""
    made = evidence(defended("noise"))
    (plain,) = made.outcomes
    found = judge(evolve(made, outcomes=(evolve(plain, use="eot"),)))
    (flag,) = (flag for flag in found if flag.code == "randomised")
    assert flag.severity == "doubtful"
    assert flag.fix == "read the accuracy at one draw and at the worst of several"


def test_flags_come_gravest_first_and_once() -> None:
    """Unsound before doubtful, one of each code."""
    found = judge(evidence(defended("noise with a seed")))
    grades = [flag.severity for flag in found]
    assert grades == sorted(grades, reverse=True)
    assert len({flag.code for flag in found}) == len(found)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_searches_stay_inside_their_ball_in_every_norm(norm: Any) -> None:
    """A model that calls whatever lies outside of the ball broken breaks nowhere."""
    from advdiff_core.engine.robust.soundness_model import Inspected
    from advdiff_core.engine.robust.soundness_search import Searches
    from advdiff_core.math import norms

    x, radius = digits()[0][:8], 0.5

    def outside(net: nn.Module, at: Tensor) -> Tensor:
        far = norms.norm(at - x, norm) - radius * (1 + 1e-4)
        return torch.stack([-far, far], 1)

    searches = Searches(
        model=Inspected(Wrapped(nn.Identity(), outside)), x=x, y=torch.zeros(8, dtype=torch.int64),
        budget=Budget(norm, radius), domain=Domain(0.0, 1.0),
    )  # fmt: skip
    for broken in (
        searches.climb(margin, steps=5), searches.climb(margin, steps=1), searches.noise(6),
        searches.queries(12),
    ):  # fmt: skip
        assert not broken.any()


def test_page_lists_every_flag() -> None:
    """Those of the sources, and no other."""
    root = Path(__file__).parents[2]
    sources = [*(root / "advdiff_core/engine/robust").glob("soundness_*.py")]
    sources.append(root / "advdiff_core/engine/robust/purified.py")
    known = {
        code
        for path in sources
        for code in re.findall(r'code = "([a-z-]+)"|code="([a-z-]+)"', path.read_text("utf-8"))
        for code in code
    } | {"query-beats-gradient", "transfer-beats-gradient"}
    page = (root / "docs/attacks.md").read_text("utf-8")
    table = page.split("| flag | what was found")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert {code for row in rows for code in re.findall("`([a-z-]+)`", row)} == known - {""}
