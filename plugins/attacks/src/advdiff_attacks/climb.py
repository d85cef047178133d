"""Projected steps along the gradient towards the input: what FGSM and PGD are made of."""

from __future__ import annotations

import math

import torch
from attrs import define, frozen
from torch import Tensor

from advdiff_attacks.best import Best
from advdiff_attacks.objectives import LossName, objective_of
from advdiff_attacks.starts import StartLaw, inside, start
from advdiff_core import Budget, Draws, Victim, expand
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.math import norms
from advdiff_core.types import Domain

__all__ = ["Climb", "Rules", "sparse_ascent"]


@frozen(kw_only=True)
class Rules:
    """How a climb is done; see the settings of `fgsm` and `pgd` for what each means."""

    loss: LossName
    steps: int
    step: float | None
    step_scale: float
    start: StartLaw
    start_scale: float
    start_std: float
    momentum: float
    sparsity: float
    keep_best: bool
    drop_broken: bool


@define(eq=False)
class _Running:
    """The samples that still climb.

    Attributes:
        rows: Which samples of the batch they are [N], int64; None for all.
        victim: The victim of these samples.
        x: Clean inputs [N, ...].
        at: Where they are [N, ...].
        budget: Norm, and radius [N].
        clean: Outputs at the clean inputs, or None.
        velocity: Decaying sum of gradients [N, ...], or None.
    """

    rows: Tensor | None
    victim: Victim
    x: Tensor
    at: Tensor
    budget: Budget
    clean: Tensor | None
    velocity: Tensor | None = None


class Climb:
    """One climb from one start, for a batch.

    Args:
        rules: How it is done.
        domain: Valid range of inputs, or None.
    """

    def __init__(self, rules: Rules, domain: Domain | None) -> None:
        self.rules = rules
        self.domain = domain

    def run(  # noqa: PLR0913 - what is climbed, from where, and what is known already.
        self,
        victim: Victim,
        x: Tensor,
        budget: Budget,
        rng: Draws,
        *,
        clean: Tensor | None,
        best: Best | None,
    ) -> Tensor:
        """The last points [B, ...]; better ones than `best` holds are put there on the way.

        Args:
            victim: What is attacked.
            x: Clean inputs [B, ...].
            budget: Norm, and radius [B] in units of `x`.
            rng: Random numbers of this climb.
            clean: Outputs at `x`, or None if nothing needs them.
            best: Best points so far, or None if they are not kept.
        """
        rules = self.rules
        begin = start(
            x, budget, self.domain, rng,
            law=rules.start, scale=rules.start_scale, std=rules.start_std,
        )  # fmt: skip
        run = _Running(None, victim, x, begin, budget, clean)
        last = begin
        if rules.drop_broken and best is not None:
            # Where samples cannot be left out, those that are broken wait where they were broken.
            run.at = last = torch.where(expand(best.broken, x), best.x, begin)
            run = _narrow(run, ~best.broken)
        for _ in range(rules.steps):
            if not run.x.shape[0]:
                break
            run = self._step(run, best)
            last = run.at if run.rows is None else last.index_copy(0, run.rows, run.at)
        if best is not None and run.x.shape[0]:
            with torch.no_grad():
                outputs = run.victim.outputs(run.at)
                best.update(run.at, self._loss(run, outputs), run.victim.broken(outputs), run.rows)
        return last

    def _loss(self, run: _Running, outputs: Tensor) -> Tensor:
        return objective_of(run.victim, self.rules.loss, run.clean)(outputs)

    def _step(self, run: _Running, best: Best | None) -> _Running:
        """Move every sample once; those that are broken already leave, if the rules say so."""
        leaf = run.at.detach().requires_grad_()
        outputs = run.victim.outputs(leaf)
        loss = self._loss(run, outputs)
        gradient = input_gradient(loss, leaf)
        broken = run.victim.broken(outputs.detach()) if self._judges(best) else None
        if best is not None:
            best.update(leaf, loss, broken, run.rows)
        velocity = _velocity(gradient, run.velocity, self.rules.momentum)
        ahead = leaf.detach() + self._length(run) * self._direction(velocity, run)
        run.at = inside(ahead, run.x, run.budget, self.domain)
        run.velocity = velocity if self.rules.momentum else None
        if self.rules.drop_broken and broken is not None:
            # They stay where they were broken.
            run.at = torch.where(expand(broken, leaf), leaf.detach(), run.at)
            return _narrow(run, ~broken)
        return run

    def _judges(self, best: Best | None) -> bool:
        return best is not None or self.rules.drop_broken

    def _length(self, run: _Running) -> Tensor | float:
        if self.rules.step is not None:
            return self.rules.step * (self.domain.span if self.domain is not None else 1.0)
        radius = torch.as_tensor(run.budget.radius, device=run.x.device)
        return expand(self.rules.step_scale * radius, run.x).to(run.x.dtype)

    def _direction(self, gradient: Tensor, run: _Running) -> Tensor:
        if run.budget.norm != "l1":
            return norms.steepest_ascent(gradient, run.budget.norm)
        return sparse_ascent(gradient, run.at, self.domain, share=self.rules.sparsity)


def sparse_ascent(gradient: Tensor, x: Tensor, domain: Domain | None, *, share: float) -> Tensor:
    """A step of unit L1 norm over the steepest coordinates that can move (Tramer and Boneh 2019).

    The steepest ascent proper moves one coordinate a step and needs thousands of steps; sharing the
    step among a small part of them is what L1 attacks do (SLIDE, section 4.2 there).

    Args:
        gradient: Gradient [B, ...].
        x: Where it was taken [B, ...].
        domain: Valid range: a coordinate at its wall that would leave it does not count; or None.
        share: Share of the coordinates that move, at least one.
    """
    flat = gradient.flatten(1)
    if domain is not None:
        at = x.flatten(1)
        stuck = ((at >= domain.high) & (flat > 0)) | ((at <= domain.low) & (flat < 0))
        flat = flat.masked_fill(stuck, 0.0)
    count = max(1, math.ceil(share * flat.shape[1]))
    chosen = flat.abs().topk(count, dim=1).indices
    signs = torch.zeros_like(flat).scatter(1, chosen, flat.gather(1, chosen).sign())
    moving = signs.abs().sum(1, keepdim=True).clamp_min(1)
    return (signs / moving).reshape(gradient.shape)


def _velocity(gradient: Tensor, before: Tensor | None, decay: float) -> Tensor:
    """Momentum over gradients of unit mean absolute value (MI-FGSM, Dong et al. 2018, eq. 6)."""
    if not decay:
        return gradient
    size = gradient.flatten(1).abs().mean(1)
    unit = gradient / expand(torch.where(size == 0, torch.ones_like(size), size), gradient)
    return unit if before is None else unit + decay * before


def _narrow(run: _Running, alive: Tensor) -> _Running:
    """The samples `alive` [N] of a climb, if the victim can be taken apart; else all of them."""
    if bool(alive.all()):
        return run
    keep = alive.nonzero().squeeze(1)
    victim = run.victim.rows(keep)
    if victim is None:
        return run
    radius = torch.as_tensor(run.budget.radius)[keep]
    return _Running(
        keep if run.rows is None else run.rows[keep], victim, run.x[keep], run.at[keep],
        run.budget._replace(radius=radius),
        None if run.clean is None else run.clean[keep],
        None if run.velocity is None else run.velocity[keep],
    )  # fmt: skip
