"""A trained run, opened for sampling, evaluation and attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrs import define, field
from torch import Tensor

from advdiff_core.engine import strict_json
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.best import BEST, best_checkpoint, names_best
from advdiff_core.engine.checkpoint import find_checkpoint, load
from advdiff_core.engine.distributed import World
from advdiff_core.engine.evaluate import evaluate
from advdiff_core.engine.generate import SampleSet, generate
from advdiff_core.engine.reopen import reopened
from advdiff_core.engine.rundir import RunDir, open_run
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.signals import StopFlag
from advdiff_core.engine.state import restore_weights
from advdiff_core.errors import DataError
from advdiff_core.recipe import Recipe

if TYPE_CHECKING:
    from advdiff_core.engine.robust.job import AttackJob
    from advdiff_core.engine.robust.result import RobustReport

__all__ = ["EVALUATION", "Trained", "open_trained"]

#: File of a run folder that holds the metrics of its end.
EVALUATION = "evaluation.json"


@define(kw_only=True, eq=False)
class Trained:
    """A trained run, opened for sampling and evaluation.

    Attributes:
        rundir: Its folder.
        experiment: Its objects, with the weights of a checkpoint.
        nimg: Images those weights have seen.
        checkpoint: Folder of the checkpoint.
        skipped: `(path, reason)` of newer checkpoints that are damaged.
        world: Processes that have opened it together and share the work: each of them calls what
            the others call. Only the main one writes.
    """

    rundir: RunDir
    experiment: Experiment
    nimg: int
    checkpoint: Path
    skipped: tuple[tuple[Path, str], ...] = ()
    world: World = field(factory=World)

    @property
    def recipe(self) -> Recipe:
        """The recipe it was trained by."""
        return self.experiment.recipe

    @property
    def info(self) -> Any:
        """Description of its data."""
        return self.experiment.source.info

    def weights_id(self) -> str:
        """SHA-256 that names the content of the checkpoint."""
        commit = read_bytes(self.checkpoint / "COMMIT", limit=4096)
        return commit.decode("ascii", "replace").split()[-1]

    def sample(
        self,
        seeds: Sequence[int],
        *,
        batch: int = 256,
        labels: Tensor | None = None,
        ema: int | None = None,
    ) -> SampleSet:
        """One sample per seed; see `advdiff_core.engine.generate.generate`."""
        return generate(
            self.experiment, seeds, batch=batch, labels=labels, ema=ema, world=self.world
        )

    def evaluate(self) -> dict[str, Any]:
        """Compute the recipe's metrics and store them, with their protocol, in the run folder.

        Returns:
            See `advdiff_core.engine.evaluate.evaluate`.
        """
        found = evaluate(self.experiment, self.rundir.path, self.nimg, world=self.world)
        if not self.world.is_main:
            return found
        path = self.rundir.resolve(EVALUATION)
        if path.is_file():
            found["losses"] = strict_json.loads(path.read_bytes(), where=str(path)).get(
                "losses", {}
            )
        self.rundir.write(EVALUATION, strict_json.dumps(found))
        return found

    def attack(
        self,
        job: AttackJob,
        *,
        stop: StopFlag | tuple[()] = (),
        tell: Callable[[str], None] = lambda line: None,
    ) -> RobustReport:
        """Attack the run; see `advdiff_core.engine.robust.evaluate.attack_run`."""
        from advdiff_core.engine.robust.evaluate import attack_run

        return attack_run(self, job, stop=stop, tell=tell)


def open_trained(
    run: Path | str,
    *,
    checkpoint: int | Literal["best"] | None = None,
    overrides: Sequence[str] = (),
    world: World | None = None,
) -> Trained:
    """Open a run with the weights of its newest whole checkpoint, or of the one named.

    Args:
        run: Run folder, or `RUN/best`.
        checkpoint: Images seen of the checkpoint wanted, or "best" for what `[validate]` found.
        overrides: `key=value` texts; see `advdiff_core.engine.reopen.reopened`.
        world: Processes that open it together; alone if None.

    Raises:
        DataError: If there is no such run or checkpoint, or it is damaged.
    """
    run = Path(run)
    if names_best(run):
        run, checkpoint = run.parent, checkpoint or BEST
    rundir = open_run(run)
    recipe, beside = reopened(rundir, overrides)
    wanted = _named(rundir, checkpoint)
    found, skipped = find_checkpoint(wanted)
    saved = load(found)
    experiment = assemble(recipe, world=world)
    restore_weights(experiment, saved.shared, beside=beside)
    return Trained(
        rundir=rundir, experiment=experiment, nimg=saved.nimg, checkpoint=found, skipped=skipped,
        world=world or World(),
    )  # fmt: skip


def _named(rundir: RunDir, checkpoint: int | Literal["best"] | None) -> Path:
    """Where the checkpoint is looked for."""
    if checkpoint is None:
        return rundir.path
    if checkpoint == BEST:
        return best_checkpoint(rundir.path)
    wanted = rundir.checkpoints / str(checkpoint)
    if not wanted.is_dir():
        found = rundir.checkpoints.iterdir() if rundir.checkpoints.is_dir() else ()
        names = sorted((path.name for path in found if path.name.isdigit()), key=int)
        message = f"has no checkpoint {checkpoint}; it has {', '.join(names) or 'none'}"
        raise DataError(message, code="S02", where=str(rundir.path), fix="choose one of these")
    return wanted
