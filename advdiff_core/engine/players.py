"""Players: who is optimised, with which terms, and one turn of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from attrs import define, field, frozen
from torch import Tensor, nn
from torch.optim import Optimizer

from advdiff_core.engine.checks import check_term
from advdiff_core.engine.displaced import Displacement
from advdiff_core.engine.distributed import World
from advdiff_core.engine.ema import Ema
from advdiff_core.engine.followers import Follower
from advdiff_core.engine.gradients import clip_gradients, refuse_non_finite
from advdiff_core.engine.lr import LearningRate, check_momentum, set_momentum
from advdiff_core.engine.sharding import release
from advdiff_core.engine.stats import Stats
from advdiff_core.engine.times import TimesWatch
from advdiff_core.interfaces.loss_term import LossTerm
from advdiff_core.interfaces.module import ModuleComponent
from advdiff_core.step.plan import Phase
from advdiff_core.step.scene import Role, Scene, running_statistics, statistics_frozen
from advdiff_core.step.step import TrainStep
from advdiff_core.types import Cost

__all__ = ["Player", "Term", "Turn"]


@frozen(kw_only=True)
class Term:
    """A loss term as a player uses it.

    Attributes:
        name: Name in the recipe.
        module: The term.
        weight: Factor in the player's total.
        after: Takes part once this many images were seen.
        until: Takes part until this many images were seen; None for ever.
        ramp: Images over which the weight rises linearly from 0, once it takes part.
    """

    name: str
    module: LossTerm
    weight: float = 1.0
    after: int = 0
    until: int | None = None
    ramp: int = 0

    def active(self, nimg: int) -> bool:
        """Whether it takes part in the step that begins at `nimg` images."""
        return self.after <= nimg and (self.until is None or nimg < self.until)

    def weight_at(self, nimg: int) -> float:
        """Its factor in the step that begins at `nimg` images: of those alone, so resumes agree."""
        rise = min((nimg - self.after + 1) / self.ramp, 1.0) if self.ramp else 1.0
        return rise * self.weight


@define(kw_only=True, eq=False)
class Player:
    """A player at run time.

    Attributes:
        name: Name in the recipe.
        roles: Roles it trains.
        terms: Its terms, sorted by name: the order of a recipe's tables never matters.
        optimizer: Its optimizer.
        parameters: `(name, parameter)` pairs in the optimizer's order.
        rates: Learning rate of each parameter group at factor 1.
        lr: Factor as a function of images.
        every: Takes part in every n-th step.
        passes: Backward passes per batch.
        moves: Optimizer step after each pass, not only after the last.
        fresh: Draws a batch of its own.
        clip: Largest gradient norm; None for no clipping.
        displacement: Where its gradients are taken, if not at its weights.
        emas: Averages by role.
        followers: Target networks that average its roles.
        updates: Optimizer steps taken.
    """

    name: str
    roles: tuple[Role, ...]
    terms: tuple[Term, ...]
    optimizer: Optimizer
    parameters: list[tuple[str, nn.Parameter]]
    lr: LearningRate
    every: int = 1
    passes: int = 1
    moves: bool = True
    fresh: bool = False
    clip: float | None = None
    displacement: Displacement | None = None
    emas: dict[str, list[Ema]] = field(factory=dict)
    followers: tuple[Follower, ...] = ()
    rates: list[float] = field(init=False)
    updates: int = 0

    def __attrs_post_init__(self) -> None:
        check_momentum(self.lr, self.optimizer.param_groups, self.name)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def phase(self, nimg: int | None = None) -> Phase:
        """Its phase with the terms active at `nimg` images; with all of them if None."""
        terms = [t for t in self.terms if nimg is None or t.active(nimg)]
        return Phase(
            player=self.name,
            roles=frozenset(role.name for role in self.roles),
            needs=tuple(query for term in terms for query in term.module.needs),
            every=self.every,
            passes=self.passes,
            moves=self.moves,
            fresh=self.fresh,
            displaced=self.displacement is not None and self.displacement.due(nimg),
        )

    @torch.no_grad()
    def tell_updated(self) -> None:
        """Let its networks and terms do what follows a move of their weights."""
        for role in self.roles:
            cast("ModuleComponent", role.module).updated()
        for term in self.terms:
            term.module.updated()

    def due(self, index: int, nimg: int) -> bool:
        """Whether it takes part in step `index`, which begins at `nimg` images."""
        return index % self.every == 0 and any(term.active(nimg) for term in self.terms)


@define(kw_only=True, eq=False)
class Turn:
    """One player's turn in one step.

    Attributes:
        player: Whose turn it is.
        scene: The static part of the run.
        world: The processes of the run.
        stats: Where losses are reported.
        nimg: Images seen before the step.
        batch: Global batch.
        checked: Whether terms are held to their contract (first steps of a run).
        finite: Whether the optimizer is kept from moving on a loss or gradient that is not finite.
    """

    player: Player
    scene: Scene
    world: World
    stats: Stats
    nimg: int
    batch: int
    checked: bool = False
    finite: bool = True
    watch: TimesWatch = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.watch = TimesWatch(self.scene.times)

    def run(self, steps: Sequence[TrainStep], later: Sequence[Phase]) -> None:
        """All passes over the micro-batches, with the optimizer's step.

        Raises:
            NumericsError: If a loss or gradient is not finite; no weight has moved then.
        """
        phase = self.player.phase(self.nimg)
        for step in steps:
            step.enter(phase, later)
        self._learning_rate()
        for turn in range(self.player.passes):
            last = turn + 1 == self.player.passes
            with self._displaced(phase, steps):
                total = self._pass(phase, steps, last=last)
            if last or self.player.moves:
                share = (turn + 1) / self.player.passes if self.player.moves else 1.0
                self._update(total, share)
            self.watch.report(self.world, self.batch)

    def _pass(self, phase: Phase, steps: Sequence[TrainStep], *, last: bool) -> Tensor:
        total = torch.zeros((), device=self.scene.compute.device)
        moves = last or self.player.moves
        for step in steps:
            total = total + self._backward(step, synced=moves and step is steps[-1])
            step.ascend()
            step.leave(phase, last=last)
        return total

    def _displaced(self, phase: Phase, steps: Sequence[TrainStep]) -> AbstractContextManager[None]:
        """Around a pass: at displaced weights, if the optimizer wants its gradient there."""
        if not phase.displaced:
            return nullcontext()
        assert self.player.displacement is not None
        return self.player.displacement.moved(lambda: self._first_pass(phase, steps))

    def _first_pass(self, phase: Phase, steps: Sequence[TrainStep]) -> None:
        networks = [role.module for role in self.scene.roles.values()]
        heads = [term.module for term in self.player.terms]
        with statistics_frozen([*networks, *heads]):
            for step in steps:
                self._backward(step, told=False, synced=step is steps[-1])
                step.leave(phase.still, last=False)
        self.watch.forget()

    def _backward(self, step: TrainStep, *, synced: bool, told: bool = True) -> Tensor:
        """Gradients of one micro-batch; returns its loss.

        Args:
            step: The micro-batch.
            synced: Whether gradients are summed over the processes: with the last one before they
                are used.
            told: Whether losses are logged.
        """
        scale = 1.0 if self.player.moves else 1.0 / self.player.passes
        total: Tensor = torch.zeros((), device=self.scene.compute.device)
        needs = self.player.phase(self.nimg).needs
        step.prepare(needs)
        for term in self.player.terms:
            if not term.active(self.nimg):
                continue
            loss = self._loss(term, step)
            if told:
                self.stats.add(f"loss/{term.name}", loss)
            weight = term.weight_at(self.nimg)
            loss = self.watch.weighted(term.module.needs, loss, weight, step)
            total = total + weight * scale * loss.sum() / self.batch
        parameters = [parameter for _, parameter in self.player.parameters]
        with self.world.syncing(parameters, wanted=synced):
            total.backward()  # type: ignore[no-untyped-call]
        if synced:
            release(self._sharded)
        reached = frozenset().union(*(step.plan.graph_roles[query] for query in needs))
        for role in self.player.roles:
            if role.name in reached:
                role.count(Cost(parameter_backwards=1))
        return total.detach()

    def _loss(self, term: Term, step: TrainStep) -> Tensor:
        if self.checked:
            return check_term(term.name, term.module, step)
        loss: Tensor = term.module(step)
        return loss

    def _learning_rate(self) -> None:
        factor, momentum = self.player.lr.factor(self.nimg), self.player.lr.momentum_at(self.nimg)
        for group, rate in zip(self.player.optimizer.param_groups, self.player.rates, strict=True):
            group["lr"] = rate * factor
            if momentum is not None:
                set_momentum(group, momentum)

    def _update(self, total: Tensor, share: float) -> None:
        """Move the weights, and what follows them.

        Args:
            total: The loss of this process.
            share: Part of the batch's updates that are done with this one: averages that count
                images forget as much in a batch of several passes as in one of a single pass.
        """
        player = self.player
        parameters = [parameter for _, parameter in player.parameters]
        self._agree_on_statistics()
        norm = clip_gradients(parameters, player.clip, self.world)
        self.stats.add(f"grad_norm/{player.name}", norm)
        if self.finite:
            refuse_non_finite(self.world.sum(total), norm, player, self.world)
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)
        player.updates += 1
        player.tell_updated()
        updates = player.passes if player.moves else 1
        for emas in player.emas.values():
            for ema in emas:
                ema.update(nimg=self.nimg + share * self.batch, batch=self.batch / updates)
        times = self.scene.times
        for follower in player.followers:
            follower.update(None if times is None else times.levels(self.nimg))

    @property
    def _sharded(self) -> list[nn.Module]:
        """Networks that are shared out and move with this player's update."""
        moving = {role.name for role in self.player.roles}
        moving |= {follower.name for follower in self.player.followers}
        roles = [role for name, role in self.scene.roles.items() if name in moving]
        return [role.module for role in roles if role.skeleton is not None]

    def _agree_on_statistics(self) -> None:
        """Running statistics of batch norms become their mean over the processes.

        Each process normalises by the batch that it sees. Were the statistics left to each as well,
        the one that saves would not hold those that the others train, and resume, with.
        """
        if self.world.size == 1:
            return
        modules = [role.module for role in self.scene.roles.values()]
        modules += [term.module for term in self.player.terms]
        self.world.average(running_statistics(modules), self.batch)
