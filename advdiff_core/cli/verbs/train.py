"""`advdiff train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.app import Site
from advdiff_core.cli.environment import catalogue, load_hooks
from advdiff_core.cli.measured import measured, measured_json
from advdiff_core.cli.output import emit, emit_json, number, quoted, say_warnings, shown, table
from advdiff_core.engine.best import BEST, Standing
from advdiff_core.engine.launched import speaks
from advdiff_core.errors import UsageError
from advdiff_core.hooks.progress import clock
from advdiff_core.hooks.specs import RunInfo, hookimpl

if TYPE_CHECKING:
    from advdiff_core.engine.api import RunResult


@click.command("train")
@options.recipe(required=False)
@options.overrides
@options.out("Folder that the numbered run folder is made in; runs if left out.")
@click.option(
    "--resume", metavar="RUN", type=Path, default=None, shell_complete=completion.runs,
    help="Go on with this run from its newest checkpoint; RECIPE may be left out.",
)  # fmt: skip
@options.nproc
@options.as_json
@click.pass_obj
def command(  # noqa: PLR0913 - one argument per option.
    site: Site,
    recipe: Path | None,
    overrides: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Train by a recipe, or go on with a run.

    \b
    advdiff train digits.toml
    advdiff train digits.toml -s run.images=20_000 -s terms.denoise.weight=0.5
    advdiff train --resume runs/00001-digits
    advdiff train digits.toml --nproc 4

    Everything goes into a new folder runs/NNNNN-name. Ctrl-C (or SIGTERM) finishes the step, saves
    and exits with 75; the same run then goes on with --resume. With --json the last line on stdout
    is an object with run, nimg, seconds, metrics, and the protocol of each metric.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    if recipe is None and resume is None:
        fix = "give a RECIPE, or a run to go on with: --resume RUN; 'advdiff new' lists recipes"
        raise UsageError("there is nothing to train", where="advdiff train", fix=fix)
    if resume is not None and out is not None:
        fix = "leave out --out: the run goes on in its own folder"
        raise UsageError("--out and --resume contradict each other", where="advdiff train", fix=fix)
    result = run_training(site, recipe, overrides, out=out, resume=resume)
    if speaks():
        _print(result, as_json)


def run_training(
    site: Site,
    path: Path | None,
    overrides: tuple[str, ...] = (),
    *,
    out: Path | None = None,
    resume: Path | None = None,
) -> RunResult:
    """Train as the command line does, with its listeners.

    Args:
        site: Where a traceback goes.
        path: The recipe; None to take that of the run that is gone on with.
        overrides: `key=value` texts.
        out: Folder that the run folder is made in.
        resume: Run to go on with.
    """
    from advdiff_core.engine.api import train
    from advdiff_core.engine.memory import keep_freed_memory
    from advdiff_core.recipe import load_recipe

    source = path if path is not None else Path(str(resume)) / completion.LOCK
    recipe = load_recipe(source, overrides, catalogue())
    if speaks():
        say_warnings(recipe)
    hooks = load_hooks()
    hooks.configure(recipe.hooks.off, recipe.hooks.options)
    hooks.add(_Guide(site), name="guide")
    keep_freed_memory()
    try:
        return train(recipe, out=out, resume=resume, hooks=hooks)
    finally:
        hooks.close()


class _Guide:
    """Notes the run folder, so that a traceback finds its place there."""

    def __init__(self, site: Site) -> None:
        self.site = site

    @hookimpl
    def run_started(self, run: RunInfo) -> None:
        """Note the folder."""
        self.site.folder = run.folder


def _print(result: RunResult, as_json: bool) -> None:
    if as_json:
        emit_json({
            "run": result.run, "nimg": result.nimg, "seconds": result.seconds,
            **measured_json(result.evaluation), "metrics": result.metrics,
            **({"best": dict(result.best)} if result.best else {}),
        })  # fmt: skip
        return
    emit(f"{shown(result.run)}: {result.nimg:,} images, {clock(result.seconds)}")
    losses = result.evaluation.get("losses") or {}
    if losses:
        emit(table([(name, number(value)) for name, value in losses.items()], indent="  "))
    if result.evaluation.get("metrics"):
        emit(measured(result.evaluation))
    if result.best.get("value") is not None:
        emit(f"best {Standing(**result.best)}: measure it by --checkpoint best, start from it by")
        emit(f"  init = {str(result.run / BEST)!r}")
    emit(f"next: advdiff report {quoted(result.run)}")
