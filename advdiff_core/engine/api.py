"""What the command line and scripts call: plan, train, resume, open a trained run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen

from advdiff_core.engine import resume as resuming
from advdiff_core.engine import strict_json
from advdiff_core.engine.agreement import agree_on_work
from advdiff_core.engine.assemble import Experiment, assemble
from advdiff_core.engine.checkpoint import Checkpoint, Store
from advdiff_core.engine.distributed import World, joined_world
from advdiff_core.engine.evaluate import evaluate, metrics
from advdiff_core.engine.feed import SAMPLE_CHECK
from advdiff_core.engine.launched import note_folder
from advdiff_core.engine.on_main import on_main
from advdiff_core.engine.opened import EVALUATION, Trained, open_trained
from advdiff_core.engine.planning import PlanReport, plan_experiment
from advdiff_core.engine.provenance import provenance
from advdiff_core.engine.rundir import RunDir, new_run, open_run
from advdiff_core.engine.signals import StopFlag, stop_on_signals
from advdiff_core.engine.switches import compiled_quietly, tf32_switched, torch_switches
from advdiff_core.engine.tick import Ticks
from advdiff_core.engine.trainer import Trainer
from advdiff_core.engine.validation import Validator
from advdiff_core.engine.wholes import whole_experiment
from advdiff_core.errors import DataError, Interrupted
from advdiff_core.hooks.manager import Hooks
from advdiff_core.hooks.specs import RunInfo
from advdiff_core.hooks.terminal import say
from advdiff_core.recipe import Recipe, load_recipe, lock_text

__all__ = ["EVALUATION", "RunResult", "Trained", "open_trained", "plan", "train"]

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
        best: Of a run with `[validate]`: the number that decides, its best value and at how many
            images, and whether the run ended early (`over`).
    """

    run: Path
    nimg: int
    seconds: float
    metrics: dict[str, float]
    evaluation: dict[str, Any] = field(factory=dict)
    best: Mapping[str, Any] = field(factory=dict)


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
        stack.enter_context(torch_switches(recipe.run))
        experiment = assemble(recipe, world=world, shards=True)
        stack.enter_context(tf32_switched(experiment.scene.compute))
        if any(model.compile for model in recipe.models.values()):
            stack.enter_context(compiled_quietly())
        agree_on_work(experiment, world, resume=resume)
        if resume is None:
            _check_inits(experiment)
            _check_fingerprint(experiment)
        _check_data(experiment)
        _check_end(experiment)
        validator = Validator.of(experiment)
        if world.any(bool(stop)):
            raise Interrupted("stopped before the first step; nothing was written")
        rundir = _open(experiment, world, out, resume)
        _lock(rundir, world, stack)
        saved = _saved(rundir, experiment, world) if resume is not None else None
        return _train(experiment, world, rundir, saved, listeners, stop, validator)


def _train(  # noqa: PLR0913 - what a run is made of.
    experiment: Experiment,
    world: World,
    rundir: RunDir,
    saved: Checkpoint | None,
    hooks: Hooks,
    stop: StopFlag,
    validator: Validator | None,
) -> RunResult:
    trainer = Trainer(
        experiment, world=world, ticks=_ticks(experiment, world, rundir, hooks), stop=stop,
        validator=validator,
    )  # fmt: skip
    if saved is not None:
        trainer.load(saved.shared, saved.rank_state)
        trainer.ticks.saved = saved.nimg
        _judge_on(trainer, saved)
    trainer.ticks.info = _info(experiment, rundir, trainer.nimg)
    if world.is_main:
        rundir.open_metrics(_EMPTY_LOG if saved is None else saved.meta["metrics"])
    done = trainer.done
    seconds = 0.0 if done else trainer.run()
    found = _finish(experiment, rundir, trainer, redo=not done)
    result = RunResult(
        run=rundir.path, nimg=trainer.nimg, seconds=seconds, evaluation=found,
        metrics={**(found.get("losses") or {}), **found.get("metrics", {})},
        best={} if validator is None else validator.standing.as_json(),
    )  # fmt: skip
    if world.is_main and not done:
        hooks.run_finished(trainer.ticks.info, result)
    return result


def _judge_on(trainer: Trainer, saved: Checkpoint) -> None:
    """Let validation go on from a checkpoint; says why the best so far no longer counts."""
    if trainer.validator is None:
        return
    noted = saved.shared.get("validation")
    reason = trainer.validator.load(noted, trainer.ticks.rundir.checkpoints)
    if reason and trainer.world.is_main:
        say(f"advdiff: warning: {reason}: validation starts anew")


def _finish(
    experiment: Experiment, rundir: RunDir, trainer: Trainer, *, redo: bool
) -> dict[str, Any]:
    path = rundir.resolve(EVALUATION)
    if not redo and path.is_file():
        stored: dict[str, Any] = strict_json.loads(path.read_bytes(), where=str(path))
        return stored
    whole = whole_experiment(experiment)
    measured = evaluate(whole, rundir.path, trainer.nimg, world=trainer.world)
    found = {**measured, "losses": trainer.ticks.losses}
    if trainer.world.is_main:
        rundir.write(EVALUATION, strict_json.dumps(found))
    return found


def _ticks(experiment: Experiment, world: World, rundir: RunDir, hooks: Hooks) -> Ticks:
    return Ticks(
        rundir=rundir,
        store=Store(root=rundir.checkpoints, keep=experiment.recipe.run.keep, ranks=world.ranks),
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
        note_folder(resume)
        return open_run(resume)

    def make() -> str:
        made = new_run(out or Path("runs"), experiment.recipe.run.name)
        _describe(made, experiment)
        return str(made.path)

    folder = Path(on_main(world, make))
    if world.is_main:
        note_folder(folder)
    return RunDir(folder)


def _lock(rundir: RunDir, world: World, stack: ExitStack) -> None:
    """Keep other runs out of the folder until the run ends."""

    def take() -> str:
        stack.callback(rundir.lock().release)
        return ""

    on_main(world, take)


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
