"""Writes the reference from what is installed: components by kind, recipes, tables, commands.

Called by Sphinx (see conf.py). By hand: `python docs/generate_reference.py docs/reference`.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import click
from sphinx.util import logging

from advdiff_core.cli.app import PROGRAM, app
from advdiff_core.cli.settings_text import Key, description, keys_of
from advdiff_core.cli.shipped import shipped_recipes
from advdiff_core.discovery import KINDS, Catalogue, Entry, scan
from advdiff_core.errors import PluginError
from advdiff_core.recipe import schema

logger = logging.getLogger(__name__)

PLUGINS = Path(__file__).parents[1].glob("plugins/*/pyproject.toml")

#: Distributions of this repository; what else is installed is not its reference.
OWN = {"advdiff-core", *(f"advdiff-{path.parent.name}" for path in PLUGINS)}
HEAD = "<!-- Made by docs/generate_reference.py at each build; edit the code it reads. -->"


def write(folder: Path) -> None:
    """Write every page into `folder`, and remove pages of an earlier build."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = dict(all_pages())
    for old in folder.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        # Untouched pages keep their time, so that an incremental build stays fast.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def all_pages() -> Iterator[tuple[str, str]]:
    """Every page as (name, text)."""
    catalogue = scan()
    kinds = [kind for kind in KINDS if own_entries(catalogue, kind)]
    for kind in kinds:
        yield kind, kind_page(catalogue, kind)
    yield "hooks", hooks_page(catalogue)
    yield "recipe", recipe_page()
    yield "shipped", shipped_page()
    yield "cli", cli_page()
    yield "index", index_page(["recipe", "cli", "shipped", *kinds, "hooks"])


def index_page(names: Iterable[str]) -> str:
    """The list of pages."""
    toc = "\n".join(names)
    intro = "Made from the installed components, the recipe's own keys and the commands."
    return f"{HEAD}\n# Reference\n\n{intro}\n\n```{{toctree}}\n:maxdepth: 2\n\n{toc}\n```\n"


def own_entries(catalogue: Catalogue, kind: str) -> list[Entry]:
    """The usable components of a kind that come from this repository."""
    return [entry for entry in catalogue.of_kind(kind) if entry.distribution in OWN]


def kind_page(catalogue: Catalogue, kind: str) -> str:
    """Every component of a kind with its settings."""
    title = kind.replace("_", " ").capitalize()
    parts = [HEAD, f"# {title}", f"Components of the entry-point group `advdiff.v1.{kind}`."]
    for entry in own_entries(catalogue, kind):
        try:
            parts.append(component_section(entry, catalogue.load(entry)))
        except PluginError as error:
            logger.warning("reference: %s", error)
    return "\n\n".join(parts) + "\n"


def hooks_page(catalogue: Catalogue) -> str:
    """Every listener, and the events it listens to."""
    intro = (
        "What listens to runs: the entry-point group `advdiff.v1.hooks`. A recipe leaves one out "
        'by `hooks.off = ["name"]` and hands it options in a table `[hooks.<name>]`.'
    )
    parts = [HEAD, "# Listeners", intro]
    for entry in catalogue.entries:
        if entry.kind == "hooks" and entry.distribution in OWN and not entry.error:
            module, _, name = entry.value.partition(":")
            cls = getattr(importlib.import_module(module), name)
            # pluggy marks the methods that listen.
            heard = [key for key, one in vars(cls).items() if hasattr(one, "advdiff_impl")]
            events = f"Listens to: {', '.join(map(code, heard))}."
            parts += [f"## {entry.name}", f"From `{entry.distribution}`.", description(cls), events]
    return "\n\n".join(parts) + "\n"


def shipped_page() -> str:
    """Every recipe that ships with a distribution."""
    intro = (
        "`advdiff new NAME` copies one into the folder at hand; a recipe of one's own builds on "
        'one by `extends = "NAME"`.'
    )
    rows = [
        f"| {code(one.reference)} | {cell(one.summary)} |"
        for one in shipped_recipes()
        if one.distribution in OWN
    ]
    table = "\n".join(["| name | what it trains |", "| --- | --- |", *rows])
    return "\n\n".join([HEAD, "# Shipped recipes", intro, table]) + "\n"


def component_section(entry: Entry, cls: type[Any]) -> str:
    """Heading, description and settings of a component."""
    keys = f"A family: {cls.variants}" if cls.variants else key_table(keys_of(cls.Settings))
    return "\n\n".join(
        [f"## {entry.name}", f"From `{entry.distribution}`.", description(cls), keys]
    )


def key_table(keys: list[Key], marked: Iterable[str] = ()) -> str:
    """Keys as a table; those in `marked` get a star."""
    if not keys:
        return "It has no keys of its own."
    rows = ["| key | type | default | allowed | |", "| --- | --- | --- | --- | --- |"]
    for key in keys:
        name = code(key.key) + (" \\*" if key.key in marked else "")
        default = "required" if key.default is None else code(key.default)
        unit = f" [{key.unit}]" if key.unit else ""
        kind = "name" if key.key == "use" else cell(key.type)
        cells = [name, kind, default, cell(key.allowed), cell(key.help + unit)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def code(text: str) -> str:
    """A code span that is safe in a table."""
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""


def cell(text: str) -> str:
    """Plain text that is safe in a table."""
    return re.sub(r"([|*_<>\[\]`])", r"\\\1", text).replace("\n", " ")


def recipe_page() -> str:
    """The recipe's own tables and keys."""
    intro = (
        "Keys of the core itself; those of a component stand in the same table, beside its `use`. "
        "Keys marked \\* may be changed when a run is resumed."
    )
    parts = [HEAD, "# Recipe", intro]
    for name, table in schema.TABLES.items():
        fields = attrs.fields(table.cls)
        safe = {schema.key_of(field) for field in fields if field.metadata.get("safe")}
        parts.append(f"## {name}.&lt;name&gt;" if table.named else f"## {name}")
        parts += [description(table.cls), key_table(keys_of(table.cls), safe)]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """`--help` of every command."""
    parts = [HEAD, "# Command line", "The output of `--help`, command by command."]
    for path, command, context in commands(app, PROGRAM, None):
        parts += [f"## {path}", "```text\n" + command.get_help(context) + "\n```"]
    return "\n\n".join(parts) + "\n"


def commands(
    command: click.Command, path: str, parent: click.Context | None
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """A command and all those below it."""
    name = path.split(" ")[-1]
    context = click.Context(command, info_name=name, parent=parent, max_content_width=100)
    yield path, command, context
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from commands(found, f"{path} {child}", context)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
