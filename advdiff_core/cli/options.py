"""Arguments and options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from advdiff_core.cli import completion
from advdiff_core.cli.app import Site
from advdiff_core.errors import UsageError

__all__ = ["as_json", "checkpoint", "nproc", "out", "overrides", "recipe", "run"]

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

#: `-s key=value`, several times; the verb gets a tuple `overrides`.
overrides = click.option(
    "-s",
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key of the recipe, for example -s run.images=2000 -s data.use=digits; the value is "
    "TOML, names may go without quotes. May be repeated.",
)

#: `--json`; the verb gets `as_json`.
as_json = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one line of JSON."
)


def _launch(ctx: click.Context, param: click.Parameter, value: int | None) -> None:
    """Run this very command in several processes, and end with what they come to.

    Raises:
        UsageError: If another launcher has started this process.
    """
    del param
    from advdiff_core.engine.launched import is_launched

    if value is None or value == 1 or ctx.resilient_parsing or is_launched():
        return
    if "RANK" in os.environ:
        message = f"another launcher has started this process, as number {os.environ['RANK']}"
        raise UsageError(message, where="--nproc", fix="leave --nproc out, or start it alone")
    from advdiff_core.cli.launch import launch

    site = ctx.find_object(Site)
    assert site is not None
    ctx.exit(launch(site.args, value))


#: `--nproc N`: the verb runs in N processes and gets no argument.
nproc = click.option(
    "--nproc", metavar="N", type=click.IntRange(1, 1024), expose_value=False, callback=_launch,
    help="Share the work among N processes on this machine, one per GPU where there are some.",
)  # fmt: skip


def recipe_path(text: str) -> Path:
    """The file of a recipe that is named by its path, or by `dist:name` as a plugin ships it.

    Raises:
        UsageError: If no plugin ships such a recipe.
    """
    path = Path(text)
    if ":" not in text or path.exists():
        return path
    from advdiff_core.cli.shipped import find_shipped

    return find_shipped(text).path


def recipe(*, required: bool = True) -> Callable[[F], F]:
    """The argument RECIPE."""
    return click.argument(
        "recipe",
        metavar="RECIPE" if required else "[RECIPE]",
        required=required,
        type=recipe_path,
        shell_complete=completion.recipes,
    )


def checkpoint_name(text: str) -> int | Literal["best"]:
    """A number of images, or `best`.

    Raises:
        UsageError: If it is neither.
    """
    if text == "best":
        return "best"
    if not text.isdecimal():
        message = f"found {text!r}, wanted a number of images, or best"
        fix = "'advdiff show RUN --json' lists the checkpoints of a run"
        raise UsageError(message, where="--checkpoint", fix=fix)
    return int(text)


#: `--checkpoint`; the verb gets `checkpoint`.
checkpoint = click.option(
    "--checkpoint", metavar="NIMG|best", type=checkpoint_name,
    help="Use the checkpoint of so many images, or the best by [validate], instead of the newest.",
)  # fmt: skip

run = click.argument("run", metavar="RUN", type=Path, shell_complete=completion.runs)


def out(help_text: str) -> Callable[[F], F]:
    """The option `--out`."""
    return click.option(
        "--out", metavar="DIR", type=click.Path(path_type=Path), default=None, help=help_text
    )
