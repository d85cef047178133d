"""Results on stdout: JSON on one line, or aligned plain text."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advdiff_core.engine.launched import speaks
from advdiff_core.errors import escape
from advdiff_core.hooks.terminal import say, shown

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.recipe import Recipe

__all__ = ["emit", "emit_json", "number", "quoted", "say_skipped", "say_warnings", "shown", "table"]


def emit(text: str = "") -> None:
    """Print a line of a result."""
    click.echo(text)


def emit_json(value: object) -> None:
    """Print a result as one line of JSON; a number that is not finite becomes null."""
    click.echo(json.dumps(_plain(value), ensure_ascii=True, allow_nan=False))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), *, indent: str = "") -> str:
    """Rows as aligned columns, two spaces apart; cells are escaped."""
    cells = [[escape(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    lines = [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def number(value: object) -> str:
    """A number for people: four digits, thousands separated; anything else as it is."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def say_warnings(recipe: Recipe) -> None:
    """Tell on stderr what a recipe's author should know although it can be run."""
    for fault in recipe.warnings:
        say(fault.as_line().replace("advdiff: error", "advdiff: warning", 1))


def say_skipped(trained: Trained) -> None:
    """Tell on stderr of newer checkpoints that are damaged; of several processes, one tells."""
    for path, reason in trained.skipped if speaks() else ():
        say(f"advdiff: warning: {escape(path)} is skipped: {escape(reason, limit=600)}")


def quoted(path: Path | str) -> str:
    """A path as part of a command that a person may copy into a shell."""
    return shlex.quote(shown(path))
