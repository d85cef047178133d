"""Laws of optimizers, on a small quadratic problem."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer as TorchOptimizer

from advdiff_core.errors import AdvdiffError
from advdiff_core.testing.bench import gaussian, plain_worlds, seeds
from advdiff_core.testing.compare import finite, same_values
from advdiff_core.testing.findings import shown, wrong
from advdiff_core.testing.kinds.rigs import rig
from advdiff_core.testing.law import Laws
from advdiff_core.testing.state import leaves
from advdiff_core.testing.subject import Subject, worlds_or_skip

__all__ = ["LAWS"]

LAWS = Laws("optimizer")
law = LAWS.law

PLAIN = (Tensor, int, float, bool, str, type(None))


class Problem:
    """A quadratic in a matrix [4, 3] and a vector [3], and an optimizer over them."""

    def __init__(self, subject: Subject, seed: int) -> None:
        worlds_or_skip(rig(subject).fit(subject)[0])
        self.weight = nn.Parameter(gaussian(seed, (4, 3)))
        self.bias = nn.Parameter(gaussian(seed + 1, (3,)))
        self.goals = gaussian(seed + 2, (4, 3)), gaussian(seed + 3, (3,))
        component = rig(subject).build(subject, plain_worlds()[0])
        named = [("models.net.weight", self.weight), ("models.net.bias", self.bias)]
        self.parameters = [self.weight, self.bias]
        try:
            self.optimizer: TorchOptimizer = component.make(named)
        except AdvdiffError:
            # Some optimizers are for matrices alone, and say so.
            self.optimizer = component.make(named[:1])
            self.parameters = [self.weight]
        self.lr = component.settings.lr

    def loss(self) -> Tensor:
        """Squared distance from the goals, a scalar."""
        pairs = zip(self.parameters, self.goals, strict=False)
        return torch.stack([(value - goal).square().sum() for value, goal in pairs]).sum()

    def steps(self, count: int) -> float:
        """The loss after some steps."""
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return float(self.loss().detach())


@law("moves-downhill", seed=seeds())
def moves_downhill(subject: Subject, seed: int) -> None:
    """A few steps make a quadratic loss smaller, and every parameter moves."""
    problem = Problem(subject, seed)
    before, start = float(problem.loss().detach()), [p.detach().clone() for p in problem.parameters]
    after = problem.steps(5)
    for parameter in problem.parameters:
        finite(
            parameter,
            what="a parameter after 5 steps",
            mend="check the update for divisions by zero",
        )
    if not after < before:
        raise wrong(
            f"a loss of {shown(after)} after 5 steps, {shown(before)} before",
            wanted="a smaller one",
            mend="check the sign of the update",
        )
    still = [
        n
        for n, (p, s) in enumerate(zip(problem.parameters, start, strict=True))
        if torch.equal(p, s)
    ]
    if still:
        raise wrong(
            f"that parameter {still[0]} of 2 does not move",
            wanted="every parameter trained",
            mend="put every parameter you are given into a group",
        )


@law("state-is-plain", seed=seeds())
def state_is_plain(subject: Subject, seed: int) -> None:
    """`state_dict()` holds tensors, numbers, texts, lists and tables, as checkpoints do."""
    problem = Problem(subject, seed)
    problem.steps(2)
    found = _not_plain(problem.optimizer.state_dict(), "state_dict()")
    if found:
        raise wrong(
            found, wanted="tensors and plain numbers", mend="keep state in tensors, per parameter"
        )


def _not_plain(value: Any, place: str) -> str:
    """Where something lies that a checkpoint cannot hold; "" if nowhere."""
    if isinstance(value, PLAIN):
        return ""
    if isinstance(value, dict):
        parts = [(f"{place}[{key!r}]", inner) for key, inner in value.items()]
    elif type(value) in (list, tuple):
        parts = [(f"{place}[{n}]", inner) for n, inner in enumerate(value)]
    else:
        return f"a {type(value).__name__} at {place}"
    return next((text for where, inner in parts if (text := _not_plain(inner, where))), "")


@law("resumes-exactly", seed=seeds(), count=st.integers(1, 4))
def resumes_exactly(subject: Subject, seed: int, count: int) -> None:
    """Loaded into a new optimizer, the state goes on as if nothing had happened."""
    problem = Problem(subject, seed)
    problem.steps(count)
    other = Problem(subject, seed)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters, problem.parameters, strict=True):
            mine.copy_(theirs)
    # The state holds the tensors themselves: a checkpoint would copy them.
    other.optimizer.load_state_dict(copy.deepcopy(problem.optimizer.state_dict()))
    problem.steps(3)
    other.steps(3)
    for mine, theirs in zip(other.parameters, problem.parameters, strict=True):
        same_values(
            mine, theirs, what="a parameter after resuming", rtol=1e-6, atol=1e-7,
            mend="keep counters and moments in state_dict(), nothing in attributes",
        )  # fmt: skip


@law("reads-the-rate", seed=seeds())
def reads_the_rate(subject: Subject, seed: int) -> None:
    """The learning rate is `lr` of the settings, and is read from the groups at every step."""
    problem = Problem(subject, seed)
    rates = [group.get("lr") for group in problem.optimizer.param_groups]
    if any(rate is None or float(rate) != float(problem.lr) for rate in rates):
        raise wrong(
            f"groups with lr = {rates}",
            wanted=f"lr = {problem.lr} of the settings",
            mend="hand settings.lr to the optimizer as it is",
        )
    problem.steps(2)
    for group in problem.optimizer.param_groups:
        group["lr"] = 0.0 if not isinstance(group["lr"], Tensor) else torch.zeros(())
    before = [p.detach().clone() for p in problem.parameters]
    problem.steps(1)
    for parameter, old in zip(problem.parameters, before, strict=True):
        same_values(
            parameter, old, what="a step with lr = 0 in every group", rtol=0.0, atol=1e-8,
            mend="read group['lr'] in step(): the learning-rate schedule writes it there",
        )  # fmt: skip


@law("leaves-everything-alone", seed=seeds())
def leaves_everything_alone(subject: Subject, seed: int) -> None:
    """A step changes weights alone: no gradient, no flag, no global generator."""
    problem = Problem(subject, seed)
    problem.loss().backward()  # type: ignore[no-untyped-call]
    grads = {f"grad {n}": p.grad for n, p in enumerate(problem.parameters) if p.grad is not None}
    with leaves("a step", inputs=grads):
        problem.optimizer.step()
    if not all(parameter.requires_grad for parameter in problem.parameters):
        raise wrong(
            "requires_grad switched off by a step",
            wanted="flags as they were",
            mend="work under torch.no_grad() instead",
        )


@law("skips-what-has-no-gradient", seed=seeds())
def skips_what_has_no_gradient(subject: Subject, seed: int) -> None:
    """A parameter without a gradient is passed over."""
    problem = Problem(subject, seed)
    problem.weight.grad = torch.ones_like(problem.weight)
    before = problem.bias.detach().clone()
    problem.optimizer.step()
    same_values(
        problem.bias,
        before,
        what="a parameter without gradient",
        rtol=0.0,
        atol=0.0,
        mend="skip parameters whose grad is None",
    )
