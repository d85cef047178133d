"""`advdiff new`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.editor import found_line
from advdiff_core.cli.output import emit, emit_json, quoted, shown, table
from advdiff_core.cli.shipped import copy_text, find_shipped, shipped_recipes
from advdiff_core.errors import StorageError, UsageError


@click.command("new")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=completion.shipped)
@click.argument("file", metavar="[FILE]", required=False, type=Path)
@click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")
@options.as_json
def command(name: str | None, file: Path | None, force: bool, as_json: bool) -> None:
    """Copy a recipe that a plugin ships; without arguments, list them.

    NAME is a recipe's name, or dist:name where several plugins ship one of that name. FILE is where
    the copy goes, NAME.toml in this folder if left out; it is yours to edit. If its folder or one
    above holds .advdiff/recipe.schema.json (see advdiff schema), its first line tells editors.
    """
    if name is None:
        _list(as_json)
        return
    shipped = find_shipped(name)
    target = file or Path(f"{shipped.name}.toml")
    _write(target, _with_schema(copy_text(shipped), target.parent), force=force)
    if as_json:
        emit_json({"file": target, "recipe": shipped.reference})
    else:
        emit(f"{shown(target)}: copied from {shipped.reference}")
        emit(f"next: advdiff check {quoted(target)} && advdiff train {quoted(target)}")


def _list(as_json: bool) -> None:
    found = shipped_recipes()
    if as_json:
        emit_json([{"recipe": one.reference, "summary": one.summary} for one in found])
    elif not found:
        emit("no installed plugin ships a recipe")
    else:
        emit(table([(one.reference, one.summary) for one in found]))
        emit("\nadvdiff new NAME copies one into this folder.")


def _with_schema(text: str, folder: Path) -> str:
    """The text with the line that editors look for, if there is a schema for them."""
    line = "" if text.startswith("#:schema") else found_line(folder)
    return f"{line}\n{text}" if line else text


def _write(target: Path, text: str, *, force: bool) -> None:
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        fix = "name another FILE, or use --force"
        raise UsageError("this file exists", where=str(target), fix=fix) from None
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise StorageError(message, where=str(target), fix="name another FILE") from error
