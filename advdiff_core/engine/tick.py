"""What happens between steps: log lines, sample pictures, checkpoints, the crash capsule."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field

from advdiff_core.engine.agreement import apart
from advdiff_core.engine.checkpoint import Store, save
from advdiff_core.engine.preview import preview
from advdiff_core.engine.rundir import RunDir, save_capsule
from advdiff_core.engine.state import is_finite
from advdiff_core.engine.trained import denoisers_noted, samples_noted
from advdiff_core.engine.utilisation import Utilisation
from advdiff_core.engine.wholes import whole_experiment
from advdiff_core.errors import NumericsError, escape
from advdiff_core.hooks.specs import VALIDATED
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from advdiff_core.engine.trainer import Trainer
    from advdiff_core.step.step import TrainStep

__all__ = ["Ticks"]


@define(kw_only=True, eq=False)
class Ticks:
    """The events of one run.

    Attributes:
        rundir: Where files go.
        store: Where checkpoints go.
        hooks: Listeners; called on the main process.
        info: What listeners are told of the run.
        provenance: Versions and hardware, stored in every checkpoint.
        saved: Images of the newest checkpoint; -1 if none.
        losses: Means of the last log tick.
        used: How much of the machine the training uses.
    """

    rundir: RunDir
    store: Store
    hooks: Any
    info: Any
    provenance: dict[str, Any] = field(factory=dict)
    saved: int = -1
    losses: dict[str, float] = field(factory=dict)
    used: Utilisation = field(factory=Utilisation)
    _since: float = 0.0
    _since_nimg: int = 0
    _warned: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.rundir.path

    def started(self, trainer: Trainer) -> None:
        """Before the first step."""
        self._since, self._since_nimg = time.monotonic(), trainer.nimg
        if trainer.world.is_main:
            self.hooks.run_started(self.info)
        if trainer.validator and trainer.validator.pending(trainer.nimg):
            self._validate(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """After every step."""
        run, sample = trainer.experiment.recipe.run, trainer.experiment.recipe.sample
        done = trainer.nimg >= trainer.images
        if done or _passed(trainer, run.log_every):
            self._log(trainer)
        if sample and sample.every and not done and _passed(trainer, sample.every):
            self._images(trainer)
        owed = trainer.validator is not None and trainer.validator.due(trainer.nimg)
        # Whoever stops it need not wait: the resumed run begins by measuring.
        if trainer.validator and (done or (owed and not trainer.world.any(bool(trainer.stop)))):
            self._validate(trainer)
        due = run.checkpoint_every and _passed(trainer, run.checkpoint_every)
        if due and not trainer.done and self.saved != trainer.nimg:
            self.save(trainer)

    def finished(self, trainer: Trainer) -> None:
        """After the last step."""
        if trainer.validator and trainer.validator.over:
            self._ended_early(trainer)
        if self.saved != trainer.nimg:
            self.save(trainer)
        self._images(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint."""
        shared, own = trainer.state()
        self._warn(apart(shared, trainer.world), trainer)
        validator = trainer.validator
        meta = {
            "provenance": self.provenance,
            "health": {"finite": trainer.world.all(is_finite(shared, own))},
            "metrics": self.rundir.metrics_mark() if trainer.world.is_main else {},
            "samples": samples_noted(trainer.experiment.source.info),
            "denoisers": denoisers_noted(trainer.scene),
        }
        if validator:
            meta["validation"] = validator.standing.as_json()
        saved = save(
            self.store, trainer.nimg, shared=shared, rank_state=own, meta=meta,
            pinned=validator.pinned if validator else frozenset(),
        )  # fmt: skip
        self.saved = trainer.nimg
        for note in saved.notes:
            sys.stderr.write(f"advdiff: warning: {escape(note, limit=500)}\n")
        if trainer.world.is_main:
            self.hooks.checkpoint_saved(self.info, trainer.nimg, saved.path)

    def _warn(self, difference: str, trainer: Trainer) -> None:
        """Tell, once, that processes have drifted apart: the first one's state is the saved one."""
        if difference and trainer.world.is_main and not self._warned:
            self._warned = True
            why = "what is saved is process 0's: does a component keep what it sees of its rows?"
            say(f"advdiff: warning: {difference} - {why}")

    def capsule(
        self, trainer: Trainer, steps: Sequence[TrainStep], error: NumericsError
    ) -> Path | None:
        """Save what is needed to repeat a step that was not finite."""
        if not steps:
            return None
        tensors: dict[str, Any] = {"x0": torch.cat([step.x0 for step in steps])}
        shared, _ = trainer.state()
        info = {
            "error": str(error), "step": trainer.index, "nimg": trainer.nimg,
            "seed": trainer.scene.seed, "rank": trainer.world.rank,
        }  # fmt: skip
        return save_capsule(
            self.rundir, f"step-{trainer.index}-rank-{trainer.world.rank}",
            {**tensors, "models": shared["models"]}, info,
        )  # fmt: skip

    def _validate(self, trainer: Trainer) -> None:
        """Measure the weights, and save them if they are the best so far."""
        assert trainer.validator is not None
        began = time.monotonic()
        numbers, best = trainer.validator.measure(self.rundir, trainer.nimg, trainer.world)
        if trainer.world.is_main:
            named = {f"{VALIDATED}{name}": value for name, value in numbers.items()}
            row = {"nimg": trainer.nimg, "step": trainer.index, **named}
            self.hooks.metrics_logged(self.info, trainer.nimg, row)
        # After the line of the log, which the checkpoint vouches for.
        if best:
            self.save(trainer)
        # Measuring does not count in the images per second of training.
        self._since += time.monotonic() - began

    def _ended_early(self, trainer: Trainer) -> None:
        """Close the log of a run that patience ended, and say so."""
        assert trainer.validator is not None
        if trainer.stats.sums:
            self._log(trainer)
        if trainer.world.is_main:
            patience = trainer.validator.settings.patience
            say(
                f"advdiff: stopped at {trainer.nimg:,} of {trainer.images:,} images: nothing better"
                f" for {patience:,}; best {trainer.validator.standing}"
            )

    def _log(self, trainer: Trainer) -> None:
        means = trainer.stats.means(trainer.world)
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        row = {
            "nimg": trainer.nimg,
            "step": trainer.index,
            "images_per_s": (trainer.nimg - self._since_nimg) / seconds,
            **means,
        }
        if trainer.world.is_main:
            row |= self.used.of(trainer, row["images_per_s"])
        self._since, self._since_nimg = time.monotonic(), trainer.nimg
        self.losses = means
        if trainer.world.is_main:
            self.hooks.metrics_logged(self.info, trainer.nimg, row)

    def _images(self, trainer: Trainer) -> None:
        experiment = whole_experiment(trainer.experiment)
        if trainer.world.is_main:
            images = preview(experiment)
            self.hooks.images_ready(self.info, trainer.nimg, images)
        # The others wait here, for as long as it takes, and not in the next step.
        trainer.world.barrier()
        # Pictures do not count in the images per second of training.
        self._since, self._since_nimg = time.monotonic(), trainer.nimg


def _passed(trainer: Trainer, every: int) -> bool:
    """Whether the last step crossed a multiple of `every` images."""
    before = trainer.nimg - trainer.batch
    return trainer.nimg // every > before // every
