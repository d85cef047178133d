"""`advdiff schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import evolve

from advdiff_core.cli import completion, options
from advdiff_core.cli.editor import schema_line
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, shown
from advdiff_core.errors import PluginError, StorageError, escape, nearest, one_line
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from advdiff_core.discovery import Catalogue


@click.command("schema")
@click.option(
    "--out", metavar="FILE", type=click.Path(path_type=Path), default=None,
    help="Write it to FILE, folders included; an older one is replaced.",
)  # fmt: skip
@click.option(
    "--plugin", "plugins", metavar="DIST", multiple=True,
    shell_complete=completion.distributions,
    help="Only components of this distribution and the core. May be repeated.",
)  # fmt: skip
@options.as_json
def command(out: Path | None, plugins: tuple[str, ...], as_json: bool) -> None:
    """Print the JSON Schema of recipes, for completion and underlining in editors.

    \b
    advdiff schema --out .advdiff/recipe.schema.json

    It knows every key of the installed components (all are imported), with type, bounds, unit and
    default. A recipe whose first line is "#:schema ./.advdiff/recipe.schema.json" is completed and
    underlined by editors with Even Better TOML, taplo or tombi. What no schema can say, such as
    names that refer to each other, is found by advdiff check.
    """  # noqa: D301 - \b keeps the line apart in the help.
    from advdiff_core.recipe.json_schema import recipe_schema

    made = recipe_schema(_only(catalogue(), plugins), _warn)
    if out is None:
        emit_json(made) if as_json else emit(json.dumps(made, indent=2))
        return
    _write(out, json.dumps(made, indent=2) + "\n")
    line = schema_line(out, Path())
    if as_json:
        emit_json({"file": out, "line": line})
        return
    emit(f"{shown(out)}: the schema of recipes, over what is installed now")
    emit(f"next: in a recipe in this folder, let the first line be: {shown(line)}")


def _only(found: Catalogue, plugins: tuple[str, ...]) -> Catalogue:
    """The catalogue with the core and these distributions alone."""
    if not plugins:
        return found
    from advdiff_core.discovery.kinds import CORE, canonical_distribution

    wanted = {CORE, *map(canonical_distribution, plugins)}
    known = {canonical_distribution(one) for one in found.distributions()}
    for name in wanted - known:
        near = nearest(name, known)
        fix = f"did you mean {near!r}?" if near else "see 'advdiff plugins'"
        raise PluginError(
            f"no installed distribution {escape(name)!r} offers components",
            where="--plugin", code="R11", fix=fix,
        )  # fmt: skip
    kept = tuple(e for e in found.entries if canonical_distribution(e.distribution) in wanted)
    return evolve(found, entries=kept)


def _warn(text: str) -> None:
    say(one_line(f"left out of the schema: {text}", level="warning"))


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"cannot be written: {error.strerror}"
        raise StorageError(message, where=str(out), fix="name another FILE") from error
