"""What the command line and scripts call: plan, train, resume, open a trained run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import define, field, frozen
from torch import Tensor

from advdiff_core.engine import resume as resuming
from advdiff_core.engine import strict_json
from advdiff_core.engine.agreement import agree_on_work
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.checkpoint import Checkpoint, Ranks, Store, find_checkpoint, load
from advdiff_core.engine.distributed import World, joined_world
from advdiff_core.engine.evaluate import evaluate, metrics
from advdiff_core.engine.feed import SAMPLE_CHECK
from advdiff_core.engine.generate import SampleSet, generate
from advdiff_core.engine.planning import PlanReport, plan_experiment
from advdiff_core.engine.provenance import provenance
from advdiff_core.engine.reopen import reopened
from advdiff_core.engine.rundir import RunDir, new_run, open_run
from advdiff_core.engine.safe_read import read_bytes
from advdiff_core.engine.signals import StopFlag, stop_on_signals
from advdiff_core.engine.state import restore_weights
from advdiff_core.engine.tick import Ticks
from advdiff_core.engine.trainer import Trainer
from advdiff_core.errors import AdvdiffError, DataError, Interrupted, StorageError
from advdiff_core.hooks.manager import Hooks
from advdiff_core.hooks.specs import RunInfo
from advdiff_core.recipe import Recipe, load_recipe, lock_text

if TYPE_CHECKING:
    from advdiff_core.engine.robust.job import AttackJob
    from advdiff_core.engine.robust.result import RobustReport

__all__ = ["EVALUATION", "RunResult", "Trained", "open_trained", "plan", "train"]

#: File of a run folder that holds the metrics of its end.
EVALUATION = "evaluation.json"
_EMPTY_LOG = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}


@frozen(kw_only=True)
class RunResult:
    """How a run ended.

    Attributes:
        run: Its folder.
        nimg: Images seen.
        seconds: Wall time of the training in this process, without evaluation.
        metrics: Metrics of its end, and the last mean of each loss.
        evaluation: What those metrics were measured on and how: the content of `evaluation.json`.
    """

    run: Path
    nimg: int
    seconds: float
    metrics: dict[str, float]
    evaluation: dict[str, Any] = field(factory=dict)


def plan(recipe: Recipe) -> PlanReport:
    """What one step of a recipe runs. Builds the models, trains nothing.

    Raises:
        AdvdiffError: If something in the recipe cannot be built.
    """
    with joined_world() as world:
        return plan_experiment(assemble(recipe, world=world), macs=True)


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    hooks: Hooks | None = None,
) -> RunResult:
    """Train by a recipe, or go on with a run.

    Args:
        recipe: The checked recipe; when resuming, the one the run was started with, or one that
            differs in keys that cannot change what was learnt so far.
        out: Folder that the numbered run folder is made in; "runs" if None.
        resume: Run folder to go on with.
        hooks: Listeners.

    Raises:
        NumericsError: If a loss or gradient is not finite; no weight has moved and a capsule was
            saved.
        Interrupted: If a signal asked to stop; everything is saved.
        AdvdiffError: For anything else that keeps it from training.
    """
    listeners = hooks or Hooks()
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        world = stack.enter_context(joined_world(timeout_s=recipe.run.timeout))
        stack.enter_context(_torch_settings(recipe))
        experiment = assemble(recipe, world=world)
        agree_on_work(experiment, world, resume=resume)
        if resume is None:
            _check_inits(experiment)
            _check_fingerprint(experiment)
        _check_data(experiment)
        _check_end(experiment)
        if world.any(bool(stop)):
            raise Interrupted("stopped before the first step; nothing was written")
        rundir = _open(experiment, world, out, resume)
        _lock(rundir, world, stack)
        saved = _saved(rundir, experiment, world) if resume is not None else None
        return _train(experiment, world, rundir, saved, listeners, stop)


def _train(  # noqa: PLR0913 - what a run is made of.
    experiment: Experiment,
    world: World,
    rundir: RunDir,
    saved: Checkpoint | None,
    hooks: Hooks,
    stop: StopFlag,
) -> RunResult:
    trainer = Trainer(
        experiment, world=world, ticks=_ticks(experiment, world, rundir, hooks), stop=stop
    )
    if saved is not None:
        trainer.load(saved.shared, saved.rank_state)
        trainer.ticks.saved = saved.nimg
    trainer.ticks.info = _info(experiment, rundir, trainer.nimg)
    if world.is_main:
        rundir.open_metrics(_EMPTY_LOG if saved is None else saved.meta["metrics"])
    done = trainer.nimg >= trainer.images
    seconds = 0.0 if done else trainer.run()
    found: dict[str, Any] = {}
    if world.is_main:
        found = _finish(experiment, rundir, trainer, redo=not done)
    result = RunResult(
        run=rundir.path, nimg=trainer.nimg, seconds=seconds, evaluation=found,
        metrics={**(found.get("losses") or {}), **found.get("metrics", {})},
    )  # fmt: skip
    if world.is_main and not done:
        hooks.run_finished(trainer.ticks.info, result)
    return result


def _finish(
    experiment: Experiment, rundir: RunDir, trainer: Trainer, *, redo: bool
) -> dict[str, Any]:
    path = rundir.resolve(EVALUATION)
    if not redo and path.is_file():
        stored: dict[str, Any] = strict_json.loads(path.read_bytes(), where=str(path))
        return stored
    found = {**evaluate(experiment, rundir.path, trainer.nimg), "losses": trainer.ticks.losses}
    rundir.write(EVALUATION, strict_json.dumps(found))
    return found


def _ticks(experiment: Experiment, world: World, rundir: RunDir, hooks: Hooks) -> Ticks:
    ranks = Ranks(rank=world.rank, world=world.size, gather=world.gather)
    return Ticks(
        rundir=rundir,
        store=Store(root=rundir.checkpoints, keep=experiment.recipe.run.keep, ranks=ranks),
        hooks=hooks,
        info=_info(experiment, rundir, 0),
        provenance=_facts(experiment, world),
    )


def _facts(experiment: Experiment, world: World) -> dict[str, Any]:
    facts = provenance(experiment.recipe, experiment.scene.compute, world=world.size)
    return {**facts, "data": experiment.source.fingerprint}


def _info(experiment: Experiment, rundir: RunDir, nimg: int) -> RunInfo:
    run = experiment.recipe.run
    return RunInfo(
        folder=rundir.path, name=run.name, images=run.images, batch=run.batch, nimg=nimg,
        started=time.time(), device=str(experiment.scene.compute.device),
        data=experiment.source.info, recipe=experiment.recipe.to_dict(),
        record=rundir.record, write=rundir.write,
    )  # fmt: skip


def _open(experiment: Experiment, world: World, out: Path | None, resume: Path | None) -> RunDir:
    """The run folder, the same on every process."""
    if resume is not None:
        return open_run(resume)

    def make() -> str:
        made = new_run(out or Path("runs"), experiment.recipe.run.name)
        _describe(made, experiment)
        return str(made.path)

    return RunDir(Path(_on_main(world, make)))


def _lock(rundir: RunDir, world: World, stack: ExitStack) -> None:
    """Keep other runs out of the folder until the run ends."""

    def take() -> str:
        stack.callback(rundir.lock().release)
        return ""

    _on_main(world, take)


def _on_main(world: World, do: Callable[[], str]) -> str:
    """What `do` returns on the main process, on every process; its failure is a failure of all."""
    text, failure = "", ""
    if world.is_main:
        try:
            text = do()
        except AdvdiffError as error:
            if world.size == 1:
                raise
            failure = str(error)
    text, failure = world.gather(text)[0], world.gather(failure)[0]
    if failure:
        raise StorageError(failure)
    return text


def _saved(rundir: RunDir, experiment: Experiment, world: World) -> Checkpoint | None:
    """The checkpoint to go on from; the frozen recipe becomes that of the run as a whole."""
    saved = resuming.newest(rundir, experiment, world, _facts(experiment, world))
    if world.is_main and load_recipe(rundir.recipe_lock) != experiment.recipe:
        _describe(rundir, experiment)
    return saved


def _describe(rundir: RunDir, experiment: Experiment) -> None:
    """Write the frozen recipe and the cost of a step."""
    data = experiment.source.fingerprint
    text = lock_text(experiment.recipe, init=experiment.inits, fingerprint=data)
    rundir.write("recipe.lock.toml", text)
    rundir.write("plan.json", strict_json.dumps(plan_experiment(experiment).as_json()))


def _check_inits(experiment: Experiment) -> None:
    """Initial weights must be those that a frozen recipe names by their SHA-256."""
    for role, found in experiment.inits.items():
        locked = experiment.recipe.locked.get(role, {})
        if locked.get("path") == found["path"] and locked.get("sha256") != found["sha256"]:
            message = f"SHA-256 is {found['sha256']}, it was {locked.get('sha256')} in the lock"
            fix = f"put the old weights back, or remove [lock.init.{role}] from the recipe"
            raise DataError(message, code="S11", where=f"models.{role}.init", fix=fix)


def _check_fingerprint(experiment: Experiment) -> None:
    """Data must be those that a frozen recipe names, unless it was told of others."""
    recipe = experiment.recipe
    locked = recipe.locked_data
    if locked.get("settings") != recipe.data_hash:
        return
    found, wanted = experiment.source.fingerprint, locked.get("fingerprint")
    if found != wanted:
        message = f"the fingerprint is {found[:16]}, it was {str(wanted)[:16]} in the lock"
        fix = "put the old data back, or remove [lock.data] from the recipe"
        raise DataError(message, code="D04", where="data", fix=fix)


def _check_data(experiment: Experiment) -> None:
    count = experiment.source.info.count
    if count < 1:
        fix = "look at the dataset's settings"
        raise DataError("there is no sample", code="D01", where="data", fix=fix)
    spread = torch.linspace(0, count - 1, min(SAMPLE_CHECK, count), dtype=torch.float64)
    experiment.source.check(spread.round().long())


def _check_end(experiment: Experiment) -> None:
    """Build what is needed after the training alone, so that its faults are found before it."""
    metrics(experiment)
    if experiment.recipe.sample is not None:
        experiment.make(experiment.recipe.sample.spec)


@contextmanager
def _torch_settings(recipe: Recipe) -> Iterator[None]:
    """Threads and determinism of the run, put back afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    torch.use_deterministic_algorithms(recipe.run.deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


@define(kw_only=True, eq=False)
class Trained:
    """A trained run, opened for sampling and evaluation.

    Attributes:
        rundir: Its folder.
        experiment: Its objects, with the weights of a checkpoint.
        nimg: Images those weights have seen.
        checkpoint: Folder of the checkpoint.
        skipped: `(path, reason)` of newer checkpoints that are damaged.
    """

    rundir: RunDir
    experiment: Experiment
    nimg: int
    checkpoint: Path
    skipped: tuple[tuple[Path, str], ...] = ()

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
        return generate(self.experiment, seeds, batch=batch, labels=labels, ema=ema)

    def evaluate(self) -> dict[str, Any]:
        """Compute the recipe's metrics and store them, with their protocol, in the run folder.

        Returns:
            See `advdiff_core.engine.evaluate.evaluate`.
        """
        found = evaluate(self.experiment, self.rundir.path, self.nimg)
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
    run: Path, *, checkpoint: int | None = None, overrides: Sequence[str] = ()
) -> Trained:
    """Open a run with the weights of its newest whole checkpoint, or of the one named.

    Args:
        run: Run folder.
        checkpoint: Images seen of the checkpoint wanted.
        overrides: `key=value` texts; see `advdiff_core.engine.reopen.reopened`.

    Raises:
        DataError: If there is no such run or checkpoint, or it is damaged.
    """
    rundir = open_run(run)
    recipe, beside = reopened(rundir, overrides)
    wanted = rundir.path if checkpoint is None else rundir.checkpoints / str(checkpoint)
    if checkpoint is not None and not wanted.is_dir():
        names = sorted((p.name for p in rundir.checkpoints.iterdir() if p.name.isdigit()), key=int)
        message = f"has no checkpoint {checkpoint}; it has {', '.join(names) or 'none'}"
        raise DataError(message, code="S02", where=str(run), fix="choose one of these")
    found, skipped = find_checkpoint(wanted)
    saved = load(found)
    experiment = assemble(recipe)
    restore_weights(experiment, saved.shared, beside=beside)
    return Trained(
        rundir=rundir, experiment=experiment, nimg=saved.nimg, checkpoint=found, skipped=skipped
    )
