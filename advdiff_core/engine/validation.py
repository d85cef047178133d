"""Measurements during the training: which weights are the best, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import define, evolve, field

from advdiff_core.engine import strict_json
from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.best import Standing
from advdiff_core.engine.distributed import World
from advdiff_core.engine.evaluate import evaluate, metrics
from advdiff_core.engine.fsio import make_dirs
from advdiff_core.engine.robust.guard import keyed_randomness
from advdiff_core.engine.rundir import RunDir
from advdiff_core.engine.wholes import whole_experiment
from advdiff_core.errors import Fault, RecipeError, nearest
from advdiff_core.interfaces.metric import Metric
from advdiff_core.recipe.measuring import Validate

__all__ = ["FILE", "Validator"]

#: The last measurement, in the run folder: as `evaluation.json`, and which weights are the best.
FILE = "validation.json"


@define(kw_only=True, eq=False)
class Validator:
    """What `[validate]` asks for.

    Attributes:
        settings: The table.
        experiment: The run, measured by that table in place of `[evaluate]`.
        metrics: Its metrics, built once.
        standing: What was found so far.
    """

    settings: Validate
    experiment: Experiment
    metrics: Mapping[str, Metric]
    standing: Standing = field(factory=Standing)

    @classmethod
    def of(cls, experiment: Experiment) -> Validator | None:
        """The validator of a run; None if its recipe asks for none.

        Raises:
            AdvdiffError: If a metric cannot be built.
        """
        table = experiment.recipe.validate
        if table is None:
            return None
        plain: Any = experiment.recipe.evaluate
        measured = evolve(
            plain, metrics=table.metrics, num=table.num, seed=table.seed,
            batch=table.batch, repeats=1,
        )  # fmt: skip
        twin = evolve(experiment, recipe=evolve(experiment.recipe, evaluate=measured))
        return cls(
            settings=table, experiment=twin, metrics=metrics(twin),
            standing=Standing(goal=table.goal),
        )  # fmt: skip

    def due(self, nimg: int) -> bool:
        """Whether a multiple of `every` images was passed since the last measurement."""
        every = self.settings.every
        return nimg // every > max(self.standing.measured, 0) // every

    def pending(self, nimg: int) -> bool:
        """Whether the weights that a run begins with, or goes on from, are still to be measured."""
        first = self.standing.measured < 0 and self.settings.start
        return first or self.due(nimg)

    def measure(self, rundir: RunDir, nimg: int, world: World) -> tuple[dict[str, float], bool]:
        """Measure the weights as they are now, and leave everything but the standing as it was.

        Args:
            rundir: Where metrics may write files, below `validation`.
            nimg: Images that the weights have seen.
            world: The processes, each of which calls this.

        Returns:
            The numbers by name, and whether the weights are the best so far.

        Raises:
            AdvdiffError: If a metric fails, or RecipeError R10 if none gives the number that
                decides.
        """
        found = self._found(rundir, nimg, world)
        numbers: dict[str, float] = found["metrics"]
        best = self.judge(numbers, nimg)
        if world.is_main:
            rundir.write(FILE, strict_json.dumps({**found, "best": self.standing.as_json()}))
        return numbers, best

    def _found(self, rundir: RunDir, nimg: int, world: World) -> dict[str, Any]:
        """What the metrics say; the processes share the work, and all get the numbers."""
        device = self.experiment.scene.compute.device
        key = (self.experiment.scene.seed, "validate", nimg)
        with _folder(rundir) as folder, keyed_randomness(key, device):
            whole = whole_experiment(self.experiment)
            return evaluate(whole, folder, nimg, built=self.metrics, world=world)

    def judge(self, numbers: Mapping[str, float], nimg: int) -> bool:
        """Whether numbers by name are the best so far; the standing is told.

        Args:
            numbers: What was measured.
            nimg: Images that the weights have seen.

        Raises:
            RecipeError: R10 if the number that decides is not among them.
        """
        number = self._number(numbers)
        value, old = float(numbers[number]), self.standing.value
        best = math.isfinite(value) and (old is None or self._beats(value, old))
        self.standing = evolve(self.standing, number=number, measured=nimg)
        if best:
            self.standing = evolve(self.standing, value=value, nimg=nimg)
        self.standing = evolve(self.standing, over=self._over())
        return best

    def _number(self, numbers: Mapping[str, float]) -> str:
        wanted = self.settings.best or next(iter(numbers), "")
        if wanted in numbers:
            return wanted
        near = nearest(wanted, numbers)
        message = f"no metric gives {wanted!r}; there are {', '.join(numbers) or 'none'}"
        fix = f"did you mean {near!r}?" if near else "name one of these"
        raise RecipeError([Fault(code="R10", key="validate.best", message=message, fix=fix)])

    def _beats(self, value: float, old: float) -> bool:
        if value == old:
            return self.settings.ties == "last"
        return value > old if self.settings.goal == "max" else value < old

    def _over(self) -> bool:
        """Whether patience is at its end."""
        patience, now = self.settings.patience, self.standing
        since = now.measured - now.nimg
        return patience > 0 and now.value is not None and since >= patience

    @property
    def over(self) -> bool:
        """Whether the run ends here."""
        return self.standing.over

    @property
    def pinned(self) -> frozenset[int]:
        """Images of checkpoints that stay, however old."""
        return frozenset() if self.standing.value is None else frozenset({self.standing.nimg})

    def load(self, noted: object, checkpoints: Path) -> str:
        """Go on from what a checkpoint holds.

        Args:
            noted: `standing.as_json()` of then, or nothing.
            checkpoints: Folder of the run's checkpoints.

        Returns:
            Why the best so far no longer counts; "" if it does.
        """
        found = Standing.read(noted)
        wanted, goal = self.settings.best or found.number, self.settings.goal
        reason = ""
        if found.value is not None and (found.number, found.goal) != (wanted, goal):
            reason = f"the best is now the {goal} of {wanted}, it was the {found.goal} of "
            reason += found.number
        elif found.value is not None and not (checkpoints / str(found.nimg)).is_dir():
            reason = f"the best checkpoint, of {found.nimg:,} images, is gone"
        self.standing = found
        if reason:
            self.standing = Standing(goal=goal, measured=found.measured)
        self.standing = evolve(self.standing, over=self._over())
        return reason


@contextmanager
def _folder(rundir: RunDir) -> Iterator[Path]:
    """Where metrics write, which does not stay if they write nothing."""
    folder = rundir.resolve("validation")
    make_dirs(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()
