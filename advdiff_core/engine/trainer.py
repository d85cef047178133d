"""The run loop: fetch, step, tick, save, stop."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.augment import rows_of
from advdiff_core.engine.distributed import World
from advdiff_core.engine.failpoints import failpoint
from advdiff_core.engine.feed import Feed
from advdiff_core.engine.micro import choose_micro_batch
from advdiff_core.engine.players import Player, Turn
from advdiff_core.engine.sharding import release
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.state import gather_state, restore_state
from advdiff_core.engine.stats import Stats
from advdiff_core.engine.tick import Ticks
from advdiff_core.engine.validation import Validator
from advdiff_core.errors import Interrupted, LostPeerError, NumericsError
from advdiff_core.step.plan import Plan
from advdiff_core.step.step import Place, TrainStep
from advdiff_core.types import Augmented

__all__ = ["Trainer"]

#: Steps in which terms are held to their contract.
CHECKED_STEPS = 2


class Trainer:
    """Trains an experiment.

    Args:
        experiment: The objects of the run.
        world: The processes of the run.
        ticks: What happens between steps: logging, images, checkpoints.
        stop: Set by a signal; honoured after the step in progress.
        validator: Measures the weights now and then; None for not at all.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        world: World,
        ticks: Ticks,
        stop: StopFlag,
        validator: Validator | None = None,
    ) -> None:
        self.experiment = experiment
        self.scene = experiment.scene
        self.world = world
        self.ticks = ticks
        self.stop = stop
        self.validator = validator
        self.stats = Stats(self.scene.compute.device)
        run = experiment.recipe.run
        self.images, self.batch = run.images, run.batch
        self.start, self.local = world.share(run.batch)
        self.micro = choose_micro_batch(experiment, self.local)
        if self._sharded:
            # All processes run such networks together, in shares of the same size.
            self.micro = min(int(text) for text in world.gather(str(self.micro)))
        self.feed = experiment.feed()
        self.feeds = {
            player.name: self.feed.share(player.name)
            for player in experiment.players
            if player.fresh
        }
        self.nimg = 0
        self.index = 0
        self._steps: list[TrainStep] = []
        models = experiment.recipe.models.values()
        self._graphs = any(isinstance(model.compile, str) for model in models)

    @property
    def _sharded(self) -> list[nn.Module]:
        """Networks that are shared out to the processes."""
        return [role.module for role in self.scene.roles.values() if role.skeleton is not None]

    @property
    def done(self) -> bool:
        """Whether it has seen all its images, or nothing has got better for too long."""
        early = self.validator is not None and self.validator.over
        return early or self.nimg >= self.images

    def load(self, shared: dict[str, Any], own: dict[str, Any]) -> None:
        """Continue from saved state."""
        restore_state(self, shared, own)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State shared by all processes, and this process's own."""
        return gather_state(self)

    def run(self) -> float:
        """Train to the last image; returns the seconds it took.

        Raises:
            NumericsError: If a loss or gradient is not finite; a capsule was saved.
            Interrupted: If a signal asked to stop; a checkpoint was saved.
            LostPeerError: If another process is gone or does not answer.
        """
        began = time.monotonic()
        try:
            self.ticks.started(self)
            while not self.done:
                failpoint("train.step")
                self._guarded_step()
                self.ticks.after_step(self)
                if self.world.any(bool(self.stop)):
                    self._interrupt()
            self.ticks.finished(self)
        except LostPeerError as error:
            error.message += f" (step {self.index}, {self.nimg:,} images)"
            error.where = error.where or str(self.ticks.folder)
            error.run = str(self.ticks.folder) if self.ticks.saved >= 0 else ""
            raise
        finally:
            self.feed.close()
            for feed in self.feeds.values():
                feed.close()
        return time.monotonic() - began

    def _interrupt(self) -> None:
        self.ticks.save(self)
        folder = self.ticks.folder
        message = f"stopped at {self.nimg:,} of {self.images:,} images; everything is saved"
        fix = f"go on with: advdiff train --resume {folder}"
        raise Interrupted(message, where=str(folder), fix=fix)

    def _guarded_step(self) -> None:
        try:
            self.train_step()
        except NumericsError as error:
            path = self.ticks.capsule(self, self._steps, error)
            error.message += f" (step {self.index}, {self.nimg:,} images; saved {path})"
            raise

    def train_step(self) -> None:
        """Run every due player on one batch."""
        if self._graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        due = [p for p in self.experiment.players if p.due(self.index, self.nimg)]
        shared = [player for player in due if not player.fresh]
        if shared:
            steps = self._new_steps(self.experiment.plan, self.feed)
            for number, player in enumerate(shared):
                later = [other.phase(self.nimg) for other in shared[number + 1 :]]
                self._turn(player).run(steps, later)
        for player in due:
            if player.fresh:
                plan, feed = self.experiment.fresh_plans[player.name], self.feeds[player.name]
                self._turn(player).run(self._new_steps(plan, feed, stream=player.name), [])
        self._steps = []
        # Roles that nobody has moved were gathered, too.
        release(self._sharded)
        self.nimg += self.batch
        self.index += 1

    def _turn(self, player: Player) -> Turn:
        return Turn(
            player=player, scene=self.scene, world=self.world, stats=self.stats, nimg=self.nimg,
            batch=self.batch, checked=self.index < CHECKED_STEPS,
            finite=self.experiment.recipe.run.check_finite,
        )  # fmt: skip

    def _new_steps(self, plan: Plan, feed: Feed, *, stream: str = "") -> list[TrainStep]:
        position = self.nimg + self.start
        batch = feed.batch(position, self.local, ahead=position + self.batch)
        edges = [*range(0, self.local, self.micro), self.local]
        self._steps = [
            self._new_step(plan, batch, low, high, stream) for low, high in pairwise(edges)
        ]
        return self._steps

    def _new_step(
        self, plan: Plan, batch: Augmented, low: int, high: int, stream: str
    ) -> TrainStep:
        place = Place(
            index=self.index, nimg=self.nimg, start=self.start + low, size=high - low,
            total=self.batch, stream=stream,
        )  # fmt: skip
        rows = rows_of(batch, slice(low, high))
        step = TrainStep(self.scene, plan, rows.x, rows.y, place)
        step.c_augment = rows.c_augment
        step.share = self.micro >= self.local
        return step
