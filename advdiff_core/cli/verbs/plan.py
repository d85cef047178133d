"""`advdiff plan`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, say_warnings


@click.command("plan")
@options.recipe()
@options.overrides
@options.as_json
def command(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say what one training step runs and costs.

    Counts, for each model, the forward passes, the backward passes towards an input alone (the
    adversary's) and those towards parameters. Builds the models and trains nothing.
    """
    from advdiff_core.engine.api import plan
    from advdiff_core.recipe import load_recipe

    loaded = load_recipe(recipe, overrides, catalogue())
    say_warnings(loaded)
    report = plan(loaded)
    if as_json:
        emit_json(report.as_json())
    else:
        for line in report.lines():
            emit(line)
