"""Going on with a run: which checkpoint, and whether what has changed since allows it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from attrs import evolve

from advdiff_core.engine.assemble import Experiment
from advdiff_core.engine.checkpoint import Checkpoint, load, newest_valid
from advdiff_core.engine.distributed import World
from advdiff_core.engine.provenance import resume_level
from advdiff_core.engine.rundir import RunDir
from advdiff_core.errors import DataError, escape
from advdiff_core.recipe import load_recipe
from advdiff_core.recipe.changes import changes

__all__ = ["newest"]


def newest(
    rundir: RunDir, experiment: Experiment, world: World, facts: dict[str, Any]
) -> Checkpoint | None:
    """The newest whole checkpoint of a run, after checking that this process may go on from it.

    Says on stderr what was skipped and how exact the continuation is.

    Args:
        rundir: The run.
        experiment: What this process has built.
        world: The processes that go on together.
        facts: Provenance of this process.

    Returns:
        The checkpoint; None if the run was stopped before its first one, which starts it anew.

    Raises:
        DataError: S01 if every checkpoint is damaged, R15 if the recipe differs in a key that
            matters, D04 if the data have changed, X05 if the processes disagree.
    """
    _same_recipe(rundir, experiment)
    path, skipped = newest_valid(rundir.checkpoints) if rundir.checkpoints.is_dir() else (None, [])
    for _, reason in skipped:
        _say(world, f"skipped a damaged checkpoint: {reason}")
    if path is None and skipped:
        message = f"all {len(skipped)} checkpoints are damaged"
        raise DataError(message, code="S01", where=str(rundir.path), fix="start a new run")
    saved = _load(path, world) if path else None
    digests = world.gather(saved.digest if saved else "")
    if len(set(digests)) > 1:
        message = "the processes found different checkpoints"
        raise DataError(message, code="X05", where=str(rundir.path), fix="share one file system")
    if saved is not None:
        _same_data(saved, facts, rundir)
        _announce(saved, facts, world)
    return saved


def _load(path: Path, world: World) -> Checkpoint:
    """The checkpoint with this process's own state; on another world size that part starts empty.

    Draws and data order depend on no process, so only the running means of an unfinished log tick
    are lost; how much goes through the networks at once is found anew.
    """
    saved = load(path)
    if saved.world != world.size:
        return evolve(saved, rank_state={"stats": {}, "micro": 0})
    return saved if world.rank == 0 else load(path, rank=world.rank)


def _same_recipe(rundir: RunDir, experiment: Experiment) -> None:
    """R15: only keys that cannot change what was learnt so far may differ."""
    frozen = load_recipe(rundir.recipe_lock)
    changed = changes(frozen, experiment.recipe)
    if changed:
        key, old, new = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        message = f"{key} was {old!r} when the run began and is {new!r} now{more}"
        fix = "leave the recipe out, or start a new run"
        raise DataError(message, code="R15", where=str(rundir.path), fix=fix)


def _same_data(saved: Checkpoint, facts: dict[str, Any], rundir: RunDir) -> None:
    before, now = saved.meta["provenance"].get("data"), facts["data"]
    if before != now:
        message = f"the data have changed since the checkpoint: {before} -> {now}"
        raise DataError(message, code="D04", where=str(rundir.path), fix="put the data back")


def _announce(saved: Checkpoint, facts: dict[str, Any], world: World) -> None:
    level, changed = resume_level(saved.meta["provenance"], facts)
    exact = "bit-identical to a run that never stopped" if level == "L0" else "; ".join(changed)
    _say(world, f"going on from {saved.nimg:,} images; repeatability {level}: {exact}")


def _say(world: World, text: str) -> None:
    if world.is_main:
        sys.stderr.write(f"advdiff: {escape(text, limit=500)}\n")
