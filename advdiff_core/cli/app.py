"""The verbs of `advdiff`, each imported when it is called."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
from attrs import define

import advdiff_core

__all__ = ["PROGRAM", "SECTIONS", "Site", "app"]

PROGRAM = "advdiff"

#: Verbs by section, with the first line of their help: listing them imports none.
SECTIONS: dict[str, dict[str, str]] = {
    "Prepare a recipe": {
        "new": "Copy a recipe that a plugin ships; without arguments, list them.",
        "check": "Find every fault in a recipe, without starting anything.",
        "data": "Show what a recipe's model will see: a picture and statistics.",
        "plan": "Say what one training step runs and costs.",
        "explain": "Describe a component and its settings.",
        "import": "Take over a checkpoint of another program, as safetensors.",
        "schema": "Print the JSON Schema of recipes, for completion and underlining in editors.",
    },
    "Run": {
        "train": "Train by a recipe, or go on with a run.",
        "sweep": "Train at every point of a grid, a process per run, with one summary.",
        "sample": "Draw samples from a trained run.",
        "evaluate": "Compute the metrics of a trained run, or attack it.",
    },
    "Look": {
        "show": "Say how far a run is, or print a recipe; compare two.",
        "report": "Write a self-contained HTML report of one or more runs.",
        "plugins": "List the installed components.",
    },
    "Write a plugin": {
        "new-plugin": "Make a plugin: a whole distribution, with a working example of each kind.",
        "check-plugin": "Examine a plugin: all that its users could stumble over.",
    },
    "Help": {
        "doctor": "Examine this installation and machine.",
        "completion": "Print the script that completes advdiff in your shell.",
    },
}
VERBS = {verb: text for section in SECTIONS.values() for verb, text in section.items()}
#: Modules of verbs that no module can be called.
_HOMES = {"import": "import_"}


@define
class Site:
    """Where a command is at work: what an error needs to leave its traceback there.

    Attributes:
        folder: The run folder, once there is one.
        args: Arguments of the command, without the program's name.
    """

    folder: Path | None = None
    args: tuple[str, ...] = ()


class Verbs(click.Group):
    """A group that knows its verbs' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the verbs, in the order of the help."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb; one that is not advdiff's own is looked for in the listeners."""
        del ctx
        if cmd_name in VERBS:
            name = _HOMES.get(cmd_name, cmd_name.replace("-", "_"))
            module = importlib.import_module(f"advdiff_core.cli.verbs.{name}")
            command: click.Command = module.command
            return command
        return _foreign_verb(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb; a wrong one fails with the nearest name."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            if name.startswith("-"):
                self.parse_args(ctx, args)
            from click.exceptions import NoSuchCommand

            raise NoSuchCommand(name, possibilities=list(VERBS), ctx=ctx)
        return name, command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by section."""
        del ctx
        width = max(map(len, VERBS))
        for section, verbs in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(verb.ljust(width), text) for verb, text in verbs.items()])


def _foreign_verb(name: str) -> click.Command | None:
    from advdiff_core.cli.environment import load_hooks

    commands = load_hooks().cli_commands()
    return next((one for one in commands if getattr(one, "name", None) == name), None)


def _print_version(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    del param
    if value and not ctx.resilient_parsing:
        click.echo(f"{PROGRAM} {advdiff_core.__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB ...",
    epilog="Every verb explains itself: advdiff train --help. Results go to stdout, everything "
    "else to stderr; with --json the result is one line of JSON. Plugins may add verbs.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print the version and exit.",
)  # fmt: skip
@click.pass_context
def app(ctx: click.Context) -> None:
    """Train diffusion models with adversaries, and adversarial models with diffusion.

    A recipe (a TOML file) says what is trained, on what, and against whom. Begin with
    "advdiff new" for recipes that come with the installed plugins, or write one.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
