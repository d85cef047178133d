"""`advdiff plugins`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, table
from advdiff_core.errors import UsageError, nearest

if TYPE_CHECKING:
    from advdiff_core.discovery import Entry


@click.command("plugins")
@click.option(
    "--kind", metavar="KIND", default=None, shell_complete=completion.kinds,
    help="Only this kind, for example attack.",
)  # fmt: skip
@options.as_json
def command(kind: str | None, as_json: bool) -> None:
    """List the installed components.

    Reads what the installed distributions declare and imports none of them. The names are what a
    recipe writes after "use ="; "advdiff explain KIND NAME" describes one.
    """
    entries = [e for e in catalogue().entries if kind in (None, e.kind)]
    if kind is not None:
        _check_kind(kind)
    if as_json:
        emit_json([_plain(entry) for entry in entries])
    else:
        _print(entries)


def _check_kind(kind: str) -> None:
    from advdiff_core.discovery import HOOKS, KINDS

    known = [*KINDS, HOOKS]
    if kind not in known:
        near = nearest(kind, known)
        fix = f"did you mean {near!r}?" if near else f"kinds are {', '.join(known)}"
        raise UsageError(f"there is no kind {kind!r}", where="--kind", fix=fix)


def _plain(entry: Entry) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "error": entry.error or None,
        "warning": entry.warning or None,
        "value": entry.value,
    }


def _print(entries: list[Entry]) -> None:
    usable = [entry for entry in entries if not entry.error]
    for number, (kind, some) in enumerate(groupby(usable, key=lambda entry: entry.kind)):
        if number:
            emit()
        emit(kind)
        emit(table([(e.name, f"{e.distribution} {e.version}") for e in some], indent="  "))
    for entry in entries:
        if entry.error:
            what = f"{entry.kind} {entry.name}".strip()
            emit(f"\nunusable: {what + ' ' if what else ''}of {entry.owner}: {entry.error}")
        if entry.warning:
            emit(f"\nwarning: {entry.warning}")
    if not entries:
        emit("nothing is installed")
