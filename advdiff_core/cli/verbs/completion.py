"""`advdiff completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from advdiff_core.cli.output import emit


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes advdiff in your shell.

    \b
    bash   add to ~/.bashrc:   eval "$(advdiff completion bash)"
    zsh    add to ~/.zshrc:    eval "$(advdiff completion zsh)"
    fish   advdiff completion fish > ~/.config/fish/completions/advdiff.fish

    It completes verbs, options, recipes, run folders, and kinds and names of components.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    found = get_completion_class(shell)
    assert found is not None
    emit(found(ctx.find_root().command, {}, "advdiff", "_ADVDIFF_COMPLETE").source())
