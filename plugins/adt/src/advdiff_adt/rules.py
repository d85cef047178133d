"""Which ways a gradient takes back through a sampler: five rules over any sampler's own steps.

A step of a linear sampler (`Sampler.linear`) is `x_next = a x + b eps_hat + c noise`, multistep
methods with earlier predictions, too. None of the rules changes a value: they differ in what a
backward pass sees.

| rule | the state's way `d x_next / d x` | input of the network | trained steps |
| --- | --- | --- | --- |
| `adt` | 1 | a constant | `grad_steps` |
| `drtune` | a | a constant | `grad_steps` |
| `full`, `last-k` | that of the whole step | in the graph | `grad_steps`; others pass nothing |
| `none` | 0 | a constant | the last step, if it is one of `grad_steps` |
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

from advdiff_core import Denoise, ImageDraws, Prediction, Sampler, Samples, StepCallback
from advdiff_core.errors import ContractError
from advdiff_core.interfaces.sampler import all_steps

__all__ = ["LINEAR_RULES", "RULES", "Rule", "rolled"]

Rule = Literal["adt", "drtune", "full", "last-k", "none"]
RULES: tuple[str, ...] = get_args(Rule)
#: Rules that treat the state's way apart: the sampler has to be linear.
LINEAR_RULES: tuple[Rule, ...] = ("adt", "drtune")


def rolled(  # noqa: PLR0913 - a sampler's own arguments, and the rule.
    sampler: Sampler,
    denoise: Denoise,
    x: Tensor,
    draws: ImageDraws,
    *,
    grid: Tensor,
    rule: Rule,
    grad_steps: tuple[int, ...],
    checkpoint: bool = False,
    callback: StepCallback | None = None,
) -> Samples:
    """Run a sampler whose result has the graph of a rule; its values are the sampler's own.

    `adt` is DERIVED as the only first-order form with an unchanged value and an identity way of the
    state (arXiv 2504.11423, eq. 11, whose literal form was not at hand):
    `x_next = x + sg((a - 1) x) + b eps_hat(sg(x)) + c noise`. `drtune` is FOUND (arXiv 2405.00760):
    `x_next = a x + b eps_hat(sg(x)) + c noise`. What stays linear is what the network predicts: of
    a model of velocities the velocity is held, so that in flow matching, where an Euler step is
    `x + (s - t) v`, both rules are one. A variance head is a constant of both.

    Args:
        sampler: The sampler.
        denoise: The denoiser; its prediction has to have a graph where gradient mode is on.
        x: Start [B, ...] at the grid's first time.
        draws: Random numbers of stochastic samplers.
        grid: Times [n + 1].
        rule: The rule.
        grad_steps: Indices of the steps whose evaluations keep a graph to the parameters.
        checkpoint: Under `full` and `last-k`: recompute these steps in the backward.
        callback: Told each step's index, its state in the graph of the rule, and the prediction;
            what it returns, unless that is None, takes the state's place.

    Raises:
        ContractError: If `adt` or `drtune` is asked of a sampler that is not linear, or
            `grad_steps` names a step that the grid does not have.
    """
    count = len(grid) - 1
    if rule in LINEAR_RULES:
        _require_linear(sampler, rule)
        _require_steps(grad_steps, count)
        ways = _Ways(denoise, x, frozenset(grad_steps), identity=rule == "adt", told=callback)
        found = sampler.sample(
            ways.denoise, x.detach() if rule == "adt" else x, draws,
            grid=grid, grad_steps=all_steps(count), callback=ways.after,
        )  # fmt: skip
        return found if ways.carried is None else found._replace(x0=ways.carried)
    kept = tuple(step for step in grad_steps if step == count - 1) if rule == "none" else grad_steps
    return sampler.sample(
        denoise, x.detach() if rule == "none" else x, draws,
        grid=grid, grad_steps=kept, checkpoint=checkpoint, callback=callback,
    )  # fmt: skip


class _Ways:
    """The two ways of a gradient through linear steps, held apart.

    The sampler runs all its steps with a graph, which for linear steps keeps a few numbers; the
    networks are what costs memory, and they get constants and a graph in the chosen steps alone.

    Args:
        denoise: The denoiser.
        x: Start [B, ...].
        steps: Steps whose evaluations keep a graph.
        identity: Whether the state's way has slope 1, instead of that of the steps.
        told: Callback of the caller.
    """

    def __init__(
        self,
        denoise: Denoise,
        x: Tensor,
        steps: frozenset[int],
        *,
        identity: bool,
        told: StepCallback | None,
    ) -> None:
        self.inner, self.steps, self.told = denoise, steps, told
        self.index = 0
        #: The state with the identity's graph; None where the steps' own way is kept.
        self.carried: Tensor | None = x if identity else None

    def denoise(self, x_t: Tensor, t: Tensor) -> Prediction:
        """The prediction at a constant `x_t` [B, ...], as a function of the state or not."""
        held = x_t.detach()
        with self._grad():
            found = self.inner(held, t)
        variance = None if found.variance is None else found.variance.detach()
        return found._replace(x_t=x_t if self.carried is None else held, variance=variance)

    def _grad(self) -> AbstractContextManager[object]:
        return nullcontext() if self.index in self.steps else torch.no_grad()

    def after(self, index: int, state: Tensor, prediction: Prediction) -> Tensor | None:
        """Between two steps: the state goes on, as a constant where the identity carries it."""
        self.index = index + 1
        if self.carried is None:
            return None if self.told is None else self.told(index, state, prediction)
        self.carried = _onto(state, self.carried)
        if self.told is not None:
            moved = self.told(index, self.carried, prediction)
            self.carried = self.carried if moved is None else moved
        return self.carried.detach()


def _onto(state: Tensor, before: Tensor) -> Tensor:
    """`state` [B, ...] with the graph of the state before, at slope 1, beside its own."""
    if not before.requires_grad:
        return state
    return state + (before - before.detach()).to(state)


def _require_linear(sampler: Sampler, rule: Rule) -> None:
    if not sampler.linear:
        message = (
            f"the gradient rule {rule!r} needs steps that are linear in states and predictions; "
            f"those of sampler {type(sampler).__name__} are not"
        )
        fix = 'set clip_x0 = false, take ddim, ddpm, euler, heun or dpm++2m, or gradient = "full"'
        raise ContractError(message, where=sampler.build.path, fix=fix)


def _require_steps(grad_steps: tuple[int, ...], count: int) -> None:
    missing = sorted(set(grad_steps) - set(range(count)))
    if missing:
        message = f"grad_steps holds {missing[0]}, the grid has steps 0 to {count - 1}"
        raise ContractError(message, fix="name steps of the grid")
