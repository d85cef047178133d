"""`advdiff report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.environment import load_hooks
from advdiff_core.cli.output import emit, emit_json, shown
from advdiff_core.errors import escape
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from advdiff_core.hooks.specs import Section
    from advdiff_core.report.record import RunRecord


@click.command("report")
@click.argument(
    "runs", metavar="RUN...", nargs=-1, required=True, type=Path, shell_complete=completion.runs
)
@click.option(
    "--out", metavar="FILE", type=Path, default=None,
    help="The HTML file; RUN/report.html if left out, report.html here for several runs.",
)  # fmt: skip
@click.option("--no-plugins", is_flag=True, help="Leave out the sections that plugins add.")
@options.as_json
def command(runs: tuple[Path, ...], out: Path | None, no_plugins: bool, as_json: bool) -> None:
    """Write a self-contained HTML report of one or more runs.

    Pictures, metrics with their protocols, curves, what ran and on which machine; for several runs
    also a comparison and what differs between their recipes. The file fetches nothing: it may be
    mailed or archived as it is.
    """
    from advdiff_core.report.page import render
    from advdiff_core.report.record import read_record

    records = [read_record(run) for run in runs]
    for record in records:
        for problem in record.problems:
            say(f"advdiff: warning: {escape(problem, limit=600)}")
    html = render(records, _no_sections if no_plugins else _sections)
    target = _write(html, runs, out)
    if as_json:
        emit_json({"report": target, "runs": runs})
    else:
        emit(shown(target))


def _no_sections(record: RunRecord) -> Sequence[Section]:
    del record
    return ()


def _sections(record: RunRecord) -> Sequence[Section]:
    return load_hooks().report_sections(record.folder)


def _write(html: str, runs: Sequence[Path], out: Path | None) -> Path:
    from advdiff_core.engine.fsio import make_dirs, write_atomic
    from advdiff_core.engine.rundir import open_run

    if out is None and len(runs) == 1:
        return open_run(runs[0]).write("report.html", html)
    target = out or Path("report.html")
    make_dirs(target.parent)
    write_atomic(target, html.encode())
    return target
