"""`advdiff evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import options
from advdiff_core.cli.app import Site
from advdiff_core.cli.output import emit, emit_json, number, shown, table
from advdiff_core.errors import escape
from advdiff_core.hooks.terminal import say


@click.command("evaluate")
@options.run
@click.option(
    "--checkpoint", metavar="NIMG", type=click.IntRange(min=0),
    help="Use the checkpoint of so many images instead of the newest.",
)  # fmt: skip
@options.as_json
@click.pass_obj
def command(site: Site, run: Path, checkpoint: int | None, as_json: bool) -> None:
    """Compute the metrics of a trained run.

    Samples as the table [evaluate] of the run's recipe says, and stores every number with its
    protocol in RUN/evaluation.json.
    """
    from advdiff_core.engine.api import open_trained

    trained = open_trained(run, checkpoint=checkpoint)
    site.folder = run
    for path, reason in trained.skipped:
        say(f"advdiff: warning: {escape(path)} is skipped: {escape(reason, limit=600)}")
    metrics = trained.evaluate()
    if as_json:
        emit_json({"run": run, "nimg": trained.nimg, "metrics": metrics})
    elif metrics:
        emit(f"{shown(run)}, {trained.nimg:,} images")
        emit(table([(name, number(v)) for name, v in sorted(metrics.items())], indent="  "))
    else:
        emit("the recipe names no metrics: add them to [evaluate]")
