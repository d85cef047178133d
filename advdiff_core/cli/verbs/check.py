"""`advdiff check`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, say_warnings, shown
from advdiff_core.errors import RecipeError
from advdiff_core.hooks.terminal import say


@click.command("check")
@options.recipe()
@options.overrides
@options.as_json
@click.pass_context
def command(ctx: click.Context, recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find every fault in a recipe, without starting anything.

    Prints each fault with its file, line and key, what was found, what was wanted and the mend.
    Exits with 0 if there is none, with 3 if only plugins are to blame, else with 2.
    """
    from advdiff_core.recipe import load_recipe

    try:
        found = load_recipe(recipe, overrides, catalogue())
    except RecipeError as error:
        if as_json:
            emit_json([fault.as_json() for fault in error.faults])
        else:
            _print(error)
        ctx.exit(error.exit_code)
    say_warnings(found)
    if as_json:
        emit_json([])
    else:
        emit(f"{shown(recipe)}: ok")


def _print(error: RecipeError) -> None:
    for line in error.lines():
        say(line)
    count = f"{len(error.faults)} fault" + ("s" if len(error.faults) > 1 else "")
    say(f"advdiff: {count}, nothing was started")
