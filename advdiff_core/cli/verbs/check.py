"""`advdiff check`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import options
from advdiff_core.cli.output import emit, emit_json
from advdiff_core.errors import Fault, RecipeError, escape
from advdiff_core.hooks.terminal import say

REFUSED = 2


@click.command("check")
@options.recipe()
@options.overrides
@options.as_json
@click.pass_context
def command(ctx: click.Context, recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find every fault in a recipe, without starting anything.

    Prints each fault with its file, line and key, what was found, what was wanted and the mend.
    Exits with 0 if there is none, else with 2.
    """
    from advdiff_core.recipe import check_recipe

    faults = check_recipe(recipe, overrides)
    if as_json:
        emit_json([fault.as_json() for fault in faults])
    elif faults:
        _print(faults)
    else:
        emit(f"{escape(recipe)}: ok")
    if faults:
        ctx.exit(REFUSED)


def _print(faults: list[Fault]) -> None:
    for line in RecipeError(faults).lines():
        say(line)
    count = f"{len(faults)} fault" + ("s" if len(faults) > 1 else "")
    say(f"advdiff: {count}, nothing was started")
