"""`advdiff evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import options
from advdiff_core.cli.app import Site
from advdiff_core.cli.measured import measured, measured_json
from advdiff_core.cli.output import emit, emit_json, shown
from advdiff_core.errors import escape
from advdiff_core.hooks.terminal import say


@click.command("evaluate")
@options.run
@click.option(
    "--checkpoint", metavar="NIMG", type=click.IntRange(min=0),
    help="Use the checkpoint of so many images instead of the newest.",
)  # fmt: skip
@options.overrides
@options.as_json
@click.pass_obj
def command(
    site: Site, run: Path, checkpoint: int | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Compute the metrics of a trained run.

    \b
    advdiff evaluate runs/00001-digits
    advdiff evaluate runs/00001-digits -s evaluate.metrics='[{use="frechet"}]'

    Samples as the table [evaluate] of the run's recipe says, and stores every number with its
    protocol in RUN/evaluation.json. With -s the run is measured in another way: keys of evaluate,
    sample and run, and frozen models with init. Recipes without a denoiser are not sampled.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    from advdiff_core.engine.api import open_trained

    trained = open_trained(run, checkpoint=checkpoint, overrides=overrides)
    site.folder = run
    for path, reason in trained.skipped:
        say(f"advdiff: warning: {escape(path)} is skipped: {escape(reason, limit=600)}")
    found = trained.evaluate()
    if as_json:
        emit_json({"run": run, "nimg": trained.nimg, **measured_json(found)})
    elif found["metrics"]:
        emit(f"{shown(run)}, {trained.nimg:,} images")
        emit(measured(found))
    else:
        emit("the recipe names no metrics: add them to [evaluate]")
