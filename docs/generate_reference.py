"""Writes the reference from what is installed: components by kind, recipe tables, commands.

Called by Sphinx (see conf.py). By hand: `python docs/generate_reference.py docs/reference`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import click
from sphinx.util import logging

from advdiff_core.discovery import KINDS, Catalogue, Entry, scan
from advdiff_core.errors import PluginError

logger = logging.getLogger(__name__)

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
    kinds = [kind for kind in KINDS if catalogue.of_kind(kind)]
    for kind in kinds:
        yield kind, kind_page(catalogue, kind)
    yield "recipe", recipe_page()
    yield "cli", cli_page()
    yield "index", index_page(["recipe", "cli", *kinds])


def index_page(names: Iterable[str]) -> str:
    """The list of pages."""
    toc = "\n".join(names)
    intro = "Made from the installed components, the recipe's own keys and the commands."
    return f"{HEAD}\n# Reference\n\n{intro}\n\n```{{toctree}}\n:maxdepth: 2\n\n{toc}\n```\n"


def kind_page(catalogue: Catalogue, kind: str) -> str:
    """Every component of a kind with its settings."""
    title = kind.replace("_", " ").capitalize()
    parts = [HEAD, f"# {title}", f"Components of the entry-point group `advdiff.v1.{kind}`."]
    for entry in catalogue.of_kind(kind):
        try:
            parts.append(component_section(entry, catalogue.load(entry)))
        except PluginError as error:
            logger.warning("reference: %s", error)
    return "\n\n".join(parts) + "\n"


def component_section(entry: Entry, cls: type[Any]) -> str:
    """Heading, description and settings of a component."""
    parts = [f"## {entry.name}", f"From `{entry.distribution}`.", prose(cls)]
    if cls.variants:
        parts.append(f"A family: {cls.variants}")
    else:
        parts.append(settings_table(cls.Settings))
    return "\n\n".join(parts)


def prose(thing: Any) -> str:
    """Paragraphs of a docstring up to its first section ("Args:", "Attributes:", "Contract:")."""
    paragraphs = (inspect.getdoc(thing) or "").split("\n\n")
    kept = []
    for paragraph in paragraphs:
        if paragraph.split("\n")[0].rstrip().endswith(":") and "\n    " in paragraph:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)


def settings_table(cls: type[Any]) -> str:
    """The keys of a Settings class as a table, nested settings below it."""
    fields = [field for field in attrs.fields(cls) if not field.name.startswith("_")]
    if not fields:
        return "It has no keys of its own."
    rows = ["| key | type | default | allowed | unit | |", "| --- | --- | --- | --- | --- | --- |"]
    for field in fields:
        help_text = str(field.metadata.get("help", ""))
        unit = str(field.metadata.get("unit", ""))
        cells = [code(field.name), code(type_text(field)), default_text(field), allowed_text(field)]
        rows.append("| " + " | ".join([*cells, cell(unit), cell(help_text)]) + " |")
    return "\n".join(rows)


def type_text(field: attrs.Attribute[Any]) -> str:
    """The type as a recipe's author reads it."""
    text = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
    kind = field.metadata.get("kind")
    text = text.replace("typing.", "").replace("advdiff_core.settings.", "")
    return text.replace("Spec", f"{kind} table") if kind else text


def default_text(field: attrs.Attribute[Any]) -> str:
    """The default as TOML would write it, as far as it can."""
    if field.default is attrs.NOTHING:
        return "required"
    value = field.default
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        value = value.factory() if not value.takes_self else None
    if value is None:
        return ""
    return code(toml_text(value))


def toml_text(value: Any) -> str:
    """A value in TOML's notation."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    if attrs.has(type(value)):
        return "{ ... }"
    return f'"{value}"' if isinstance(value, str) else str(value)


def allowed_text(field: attrs.Attribute[Any]) -> str:
    """Bounds, choices, or what a name refers to."""
    choices = field.metadata.get("choices")
    if choices:
        return ", ".join(code(toml_text(choice)) for choice in choices)
    signs = {"gt": "&gt;", "ge": "&ge;", "lt": "&lt;", "le": "&le;"}
    bounds = field.metadata.get("bounds") or {}
    parts = [f"{signs[rule]} {limit:g}" for rule, limit in bounds.items()]
    if field.metadata.get("ref"):
        parts.append(f"a {field.metadata['ref']} of the recipe")
    return ", ".join(parts)


def code(text: str) -> str:
    """A code span that is safe in a table."""
    return f"`{cell(text)}`" if text else ""


def cell(text: str) -> str:
    """Text that is safe in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def recipe_page() -> str:
    """The recipe's own tables and keys."""
    return f"{HEAD}\n# Recipe\n"


def cli_page() -> str:
    """`--help` of every command."""
    from advdiff_core.cli import main

    parts = [HEAD, "# Command line", "The output of `--help`, command by command."]
    for path, command, context in commands(main, "advdiff", None):
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
