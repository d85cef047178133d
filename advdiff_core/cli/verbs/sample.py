"""`advdiff sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from advdiff_core.cli import options
from advdiff_core.cli.app import Site
from advdiff_core.cli.numbers import DEFAULT, parse_ranges, ranges_text, seeds_of
from advdiff_core.cli.output import emit, emit_json, say_skipped, shown
from advdiff_core.cli.shards import ShardOptions, report_shards, write_shards
from advdiff_core.engine.launched import speaks
from advdiff_core.errors import UsageError
from advdiff_core.hooks.progress import clock

if TYPE_CHECKING:
    from torch import Tensor

    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.generate import SampleSet

#: Samples shown in the picture.
SHOWN = 256


@click.command("sample")
@options.run
@click.option(
    "--num", metavar="N", type=click.IntRange(min=1), help="How many samples; 64 if left out."
)
@click.option(
    "--seeds", metavar="A-B",
    help="The seed of each sample, both ends included, for example 0-63; from 0 if left out.",
)  # fmt: skip
@options.out("Where the files go; RUN/samples or RUN/shards if left out.")
@click.option(
    "--to", type=click.Choice(["files", "shards"]), default="files", show_default=True,
    help="A picture and a file of tensors, or a data set in shards, which can be resumed.",
)  # fmt: skip
@options.checkpoint
@click.option(
    "--labels", "--classes", metavar="A-B",
    help="Class labels, repeated over the samples; drawn by the seeds if left out, all in turn for "
    "shards.",
)  # fmt: skip
@click.option(
    "--ema", metavar="K", type=click.IntRange(min=-1),
    help="Which of the averages of the weights; -1 for the raw weights.",
)  # fmt: skip
@click.option(
    "--batch", metavar="N", type=click.IntRange(min=1), default=64, show_default=True,
    help="Samples made at once; changes the memory needed, not the samples.",
)  # fmt: skip
@click.option(
    "--judge", metavar="RUN|ROLE",
    help="Shards: a classifier whose confidence in each label is stored; a run, or a model of RUN.",
)  # fmt: skip
@click.option("--judge-role", metavar="ROLE", help="Shards: the classifier in the run of --judge.")
@click.option(
    "--select", metavar="SHARE", type=click.FloatRange(0, 1, min_open=True),
    help="Shards: keep the share of each class that the judge is surest of, as 0.2 in DM-AT.",
)  # fmt: skip
@click.option(
    "--shard-size", metavar="N", type=click.IntRange(min=1),
    help="Shards: images per shard; 10000 if left out.",
)  # fmt: skip
@options.overrides
@options.nproc
@options.as_json
@click.pass_obj
def command(  # noqa: PLR0913 - one argument per option.
    site: Site,
    run: Path,
    num: int | None,
    seeds: str | None,
    out: Path | None,
    to: str,
    checkpoint: int | Literal["best"] | None,
    labels: str | None,
    ema: int | None,
    batch: int,
    judge: str | None,
    judge_role: str | None,
    select: float | None,
    shard_size: int | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw samples from a trained run.

    Writes samples.png (a grid), samples.safetensors and samples.json, which says how they were
    made: seeds, network evaluations per sample (NFE), seconds, checkpoint. A seed gives the same
    sample whatever the batch and the other seeds.

    With --to shards it makes a data set for `use = "npz-shards"`: the labels take turns, each image
    is stored with its seed, and the same command goes on after a kill. With -s sampling changes, or
    a frozen classifier with init joins as a judge.
    """
    shards = ShardOptions(
        select=select, judge=judge, judge_role=judge_role, shard_size=shard_size, ema=ema,
        batch=batch,
    )  # fmt: skip
    if to == "files":
        shards.refuse_without_shards()
    chosen = seeds_of(seeds, num) if to == "files" or seeds else range(num or DEFAULT)
    classes = parse_ranges(labels, "--labels") if labels else None
    from advdiff_core.engine.api import open_trained
    from advdiff_core.engine.distributed import joined_world

    with joined_world() as world:
        trained = open_trained(run, checkpoint=checkpoint, overrides=overrides, world=world)
        site.folder = run
        say_skipped(trained)
        if to == "shards":
            _check_labels(trained, classes)
            facts = write_shards(trained, chosen, classes, out or run / "shards", shards)
        else:
            told = _labels(trained, classes, len(chosen))
            made = trained.sample(chosen, batch=batch, labels=told, ema=ema)
    if not speaks():
        return
    if to == "shards":
        report_shards(facts, as_json=as_json)
    else:
        _report(_write(out or run / "samples", trained, made), made, as_json=as_json)


def _report(facts: dict[str, Any], made: SampleSet, *, as_json: bool) -> None:
    """Print what was made."""
    if as_json:
        emit_json({**facts, "seeds": ranges_text(list(made.seeds))})
        return
    took = f"{made.nfe} NFE per sample, {clock(made.seconds)}"
    emit(f"{shown(facts['out'])}: {len(made.seeds):,} samples, {took}")
    emit(f"  {shown(facts['files']['picture'])}")


def _labels(trained: Trained, classes: list[int] | None, count: int) -> Tensor | None:
    if classes is None:
        return None
    _check_labels(trained, classes)
    import torch

    return torch.tensor([classes[index % len(classes)] for index in range(count)])


def _check_labels(trained: Trained, classes: list[int] | None) -> None:
    known = trained.info.classes
    wrong = next((label for label in classes or () if label >= known), None)
    if wrong is not None:
        found = f"the data have {known} classes" if known else "the data have no classes"
        fix = f"use 0-{known - 1}" if known else "leave out --labels"
        raise UsageError(f"found {wrong}, but {found}", where="--labels", fix=fix)


def _write(folder: Path, trained: Trained, made: SampleSet) -> dict[str, Any]:
    """Write the three files; returns what `samples.json` says, and where."""
    import torch
    from safetensors.torch import save

    from advdiff_core.engine import strict_json
    from advdiff_core.engine.fsio import make_dirs, write_atomic
    from advdiff_core.hooks.pictures import rows_png

    source = trained.experiment.source
    tensors = {"samples": made.x0, "seeds": torch.tensor(made.seeds)}
    if made.labels is not None:
        tensors["labels"] = made.labels
    files = {
        "picture": folder / "samples.png",
        "tensors": folder / "samples.safetensors",
        "facts": folder / "samples.json",
    }
    facts = _facts(trained, made)
    make_dirs(folder)
    caption = f"samples, {made.nfe} NFE, {trained.nimg:,} images"
    shown_first = source.decode(made.x0[:SHOWN])
    write_atomic(files["picture"], rows_png([(caption, shown_first)], source.pictures.domain))
    write_atomic(files["tensors"], save(tensors))
    write_atomic(files["facts"], strict_json.dumps(facts))
    return {**facts, "out": folder, "files": files}


def _facts(trained: Trained, made: SampleSet) -> dict[str, Any]:
    domain = trained.info.domain
    return {
        "run": str(trained.rundir.path),
        "checkpoint": str(trained.checkpoint),
        "nimg": trained.nimg,
        "num": len(made.seeds),
        "seeds": list(made.seeds),
        "nfe": made.nfe,
        "seconds": made.seconds,
        "sampler": dict(made.sampler),
        "shape": list(made.x0.shape),
        "domain": None if domain is None else [domain.low, domain.high],
    }
