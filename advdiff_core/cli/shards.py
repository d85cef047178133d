"""`advdiff sample --to shards`: from options to a synthetic data set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from advdiff_core.cli.output import emit, emit_json, shown
from advdiff_core.errors import UsageError, escape
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.judge import Judge
    from advdiff_core.engine.synthesis import Job

__all__ = ["ShardOptions", "report_shards", "write_shards"]


@frozen(kw_only=True)
class ShardOptions:
    """What the command line says of a synthetic data set.

    Attributes:
        select: Share of each class that is kept; None for all.
        judge: Run of a classifier, or a role of the sampled run; None for no judge.
        judge_role: Role in the judge's run.
        shard_size: Images per shard.
        ema: Which average of the weights.
        batch: Images at once.
    """

    select: float | None
    judge: str | None
    judge_role: str | None
    shard_size: int | None
    ema: int | None
    batch: int

    def refuse_without_shards(self) -> None:
        """Refuse options that mean something for shards alone.

        Raises:
            UsageError: If one is given.
        """
        given = {
            "--select": self.select, "--judge": self.judge, "--judge-role": self.judge_role,
            "--shard-size": self.shard_size,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None:
                message = f"{name} belongs to a synthetic data set"
                raise UsageError(message, where="advdiff sample", fix="add --to shards")


def write_shards(
    trained: Trained,
    seeds: Sequence[int],
    labels: list[int] | None,
    out: Path,
    options: ShardOptions,
) -> dict[str, Any]:
    """Make the data set; returns its facts.

    Args:
        trained: The run that is sampled.
        seeds: Seeds of the images, one after the other.
        labels: Labels given in turn; every class if None.
        out: Folder of the shards.
        options: The options.

    Raises:
        UsageError: If options do not fit each other or the run.
    """
    from advdiff_core.engine.signals import stop_on_signals
    from advdiff_core.engine.synthesis import Synthesis

    job = _job(trained, seeds, labels, options)
    judge, told = _judge(trained, options)
    with stop_on_signals() as stop:
        return Synthesis(
            trained=trained, job=job, folder=out, judge=judge, judged_by=told, ema=options.ema,
            batch=options.batch, stop=stop, tell=lambda line: say(f"  {escape(line)}"),
        ).run()  # fmt: skip


def report_shards(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print what was made."""
    if as_json:
        emit_json(facts)
        return
    kept = "" if facts["count"] == facts["made"] else f" of {facts['made']:,} made"
    emit(f"{shown(facts['out'])}: {facts['count']:,} images{kept} in {facts['shards']} shards")
    emit(f'  [data] use = "npz-shards", path = "{shown(facts["out"])}"')


def _job(
    trained: Trained, seeds: Sequence[int], labels: list[int] | None, options: ShardOptions
) -> Job:
    from advdiff_core.engine.synthesis import Job

    if any(later != seed + 1 for seed, later in pairwise(seeds)):
        message = "the seeds of a data set follow each other"
        raise UsageError(message, where="--seeds", fix="give one range, for example 0-49999")
    if labels is None:
        labels = list(range(trained.info.classes))
    if options.select is not None and not (labels and options.judge):
        missing = "a classifier to choose by" if labels else "data with classes"
        fix = "add --judge RUN" if labels else "leave out --select"
        raise UsageError(f"--select needs {missing}", where="--select", fix=fix)
    extra = {} if options.shard_size is None else {"shard": options.shard_size}
    return Job(first=seeds[0], num=len(seeds), labels=tuple(labels), select=options.select, **extra)


def _judge(trained: Trained, options: ShardOptions) -> tuple[Judge | None, dict[str, Any] | None]:
    from advdiff_core.engine.api import open_trained
    from advdiff_core.engine.best import names_best
    from advdiff_core.engine.judge import find_judge

    if options.judge is None:
        return None, None
    if not (Path(options.judge).is_dir() or names_best(Path(options.judge))):
        judge = find_judge(trained.experiment, options.judge, batch=options.batch)
        models = trained.recipe.to_dict()["models"]
        return judge, {"role": judge.role, "model": models[judge.role]}
    other = open_trained(Path(options.judge))
    judge = find_judge(other.experiment, options.judge_role, batch=options.batch)
    return judge, {
        "run": other.rundir.path.name, "nimg": other.nimg, "role": judge.role,
        "weights": other.weights_id(),
    }  # fmt: skip
