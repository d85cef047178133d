"""`advdiff doctor`."""

from __future__ import annotations

import attrs
import click

from advdiff_core.cli import options
from advdiff_core.cli.output import emit, emit_json
from advdiff_core.errors import escape


@click.command("doctor")
@click.option(
    "--traceback", "with_traceback", is_flag=True,
    help="Print where each broken plugin fails; --json always has it.",
)  # fmt: skip
@options.as_json
@click.pass_context
def command(ctx: click.Context, with_traceback: bool, as_json: bool) -> None:
    """Examine this installation and machine.

    Versions, whether torch and torchvision fit together, copies that hide each other, processor,
    GPUs, threads, disk, and every installed plugin (all are imported). Prints no secrets: paste it
    into a bug report. Exits with the code of the first problem, 0 if there is none.
    """
    from advdiff_core.doctor import examine

    findings = examine()
    if as_json:
        emit_json([attrs.asdict(finding) for finding in findings])
    else:
        for one in findings:
            fix = f" - {escape(one.fix)}" if one.fix else ""
            emit(f"{one.status:<5} {one.topic:<12} {escape(one.found, limit=600)}{fix}")
            if with_traceback:
                _print(one.traceback)
    ctx.exit(next((one.exit_code for one in findings if one.exit_code), 0))


def _print(traceback: str) -> None:
    for line in traceback.splitlines():
        emit(f"      {escape(line, limit=600)}")
