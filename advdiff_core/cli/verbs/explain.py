"""`advdiff explain`."""

from __future__ import annotations

import shutil
import textwrap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs
import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.example_text import example_of
from advdiff_core.cli.output import emit, emit_json, table
from advdiff_core.cli.settings_text import Key, description, keys_of
from advdiff_core.cli.source_text import source_of
from advdiff_core.errors import AdvdiffError, PluginError, UsageError, escape, nearest

if TYPE_CHECKING:
    from advdiff_core.discovery import Entry
    from advdiff_core.recipe.schema import Table

RECIPE = "recipe"

#: Kinds that are networks, whose size is told.
NETWORKS = ("alignment_target", "backbone", "discriminator")


@click.command("explain")
@click.argument("kind", metavar="KIND", shell_complete=completion.kinds)
@click.argument("name", metavar="[NAME]", required=False, shell_complete=completion.names)
@options.as_json
def command(kind: str, name: str | None, as_json: bool) -> None:
    """Describe a component and its settings.

    \b
    advdiff explain sampler heun        one component
    advdiff explain sampler             all samplers, a line each
    advdiff explain recipe              the tables and keys every recipe has
    advdiff explain recipe players      one table
    """  # noqa: D301 - \b keeps the lines apart in the help.
    if name is None and "." in kind:
        kind, _, name = kind.partition(".")
    if kind == RECIPE:
        found: Any = [_table_facts(one, layout) for one, layout in _tables(name)]
    elif name is None:
        found = _kind_facts(kind)
    else:
        found = _component_facts(kind, name)
    if as_json:
        emit_json(found)
    elif kind == RECIPE:
        _print_tables(found)
    elif name is None:
        emit(table([(one["name"], one["summary"]) for one in found]))
        emit(f"\nadvdiff explain {kind} NAME describes one.")
    else:
        _print_component(found)


def _kind_facts(kind: str) -> list[dict[str, Any]]:
    _check_kind(kind)
    return [{"name": entry.name, "summary": _summary(entry)} for entry in catalogue().of_kind(kind)]


def _check_kind(kind: str) -> None:
    from advdiff_core.discovery import KINDS

    if kind not in KINDS:
        near = nearest(kind, [*KINDS, RECIPE])
        fix = f"did you mean {near!r}?" if near else f"kinds are {', '.join(KINDS)}, {RECIPE}"
        raise UsageError(f"there is no kind {escape(kind)!r}", where="KIND", fix=fix)


def _summary(entry: Entry) -> str:
    try:
        return description(catalogue().load(entry)).split("\n")[0]
    except PluginError as error:
        return f"unusable: {error.message}"


def _component_facts(kind: str, name: str) -> dict[str, Any]:
    _check_kind(kind)
    entry, variant = catalogue().resolve(kind, name)
    cls = catalogue().load(entry)
    return {
        "kind": kind,
        "name": name,
        "distribution": entry.distribution,
        "version": entry.version,
        "class": entry.value,
        "source": source_of(cls),
        "example": example_of(kind, name, _settings_type(cls, variant, name), cls, _first_of),
        "description": description(cls),
        "family": cls.variants,
        "settings": [attrs.asdict(key) for key in _component_keys(cls, variant, name)],
        **_size_facts(kind, cls, variant),
    }


def _size_facts(kind: str, cls: type[Any], variant: str | None) -> dict[str, Any]:
    if kind not in NETWORKS:
        return {}
    from advdiff_core.engine.size import default_size

    size = default_size(cls, kind, cls.settings_type(variant))
    return {"size": None if size is None else attrs.asdict(size)}


def _component_keys(cls: type[Any], variant: str | None, name: str) -> list[Key]:
    return keys_of(_settings_type(cls, variant, name))


def _settings_type(cls: type[Any], variant: str | None, name: str) -> type[Any]:
    try:
        found: type[Any] = cls.settings_type(variant)
    except AdvdiffError:
        raise
    except ValueError as error:
        raise UsageError(str(error), where=name, fix="choose one of these") from error
    return found


def _first_of(kind: str) -> str:
    """A component of a kind that needs no settings, for an example; any if each needs some."""
    names = catalogue().names(kind)
    for name in names:
        with suppress(PluginError):
            fields = attrs.fields(catalogue().load(catalogue().find(kind, name)).Settings)
            if all(one.default is not attrs.NOTHING for one in fields):
                return name
    return next(iter(names), kind)


def _tables(name: str | None) -> list[tuple[str, Table]]:
    from advdiff_core.recipe.schema import TABLES

    if name is None:
        return list(TABLES.items())
    if name not in TABLES:
        near = nearest(name, TABLES)
        fix = f"did you mean {near!r}?" if near else f"tables are {', '.join(TABLES)}"
        raise UsageError(f"a recipe has no table {escape(name)!r}", where="NAME", fix=fix)
    return [(name, TABLES[name])]


def _table_facts(name: str, layout: Table) -> dict[str, Any]:
    keys = keys_of(layout.cls, skip=("spec",))
    return {
        "table": f"{name}.<name>" if layout.named else name,
        "description": description(layout.cls).partition(": ")[2].replace("`", ""),
        "kind": layout.kind,
        "default": layout.default,
        "settings": [attrs.asdict(key) for key in keys],
    }


def _print_tables(tables: list[dict[str, Any]]) -> None:
    for number, one in enumerate(tables):
        if number:
            emit()
        emit(f"[{one['table']}]  {one['description']}")
        if one["kind"]:
            default = f" ({one['default']} if left out)" if one["default"] else ""
            use = f"use: a {one['kind']}{default}; its own settings stand beside these keys, see"
            emit(f"  {use} 'advdiff explain {one['kind']}'")
        _print_keys(one["settings"])


def _print_component(facts: dict[str, Any]) -> None:
    emit(
        f"{facts['kind']} {escape(facts['name'])}, from {facts['distribution']} {facts['version']}"
    )
    emit("\n" + "\n".join(escape(line) for line in facts["description"].split("\n")) + "\n")
    if facts["source"]:
        emit(f"Source: {escape(facts['source'], limit=600)}\n")
    if facts["family"]:
        emit(f"A family: {escape(facts['family'])}\n")
    if facts["settings"]:
        _print_keys(facts["settings"])
    else:
        emit("It has no settings.")
    if facts.get("size"):
        _print_size(facts["size"])
    shared = _shared_keys(facts["kind"])
    if shared:
        emit(f"\nBeside them stand the keys every such table has: {shared}.")
    if facts["example"]:
        emit("\nIn a recipe:\n")
        emit("\n".join(f"  {escape(line, limit=400)}" for line in facts["example"].split("\n")))


def _print_size(size: dict[str, Any]) -> None:
    from advdiff_core.engine.size import macs_words

    shape = "x".join(map(str, size["shape"]))
    macs = "" if size["macs"] is None else f", {macs_words(size['macs'])} a forward of one sample"
    emit(
        f"\nWith these defaults, on data of shape {shape}: {size['parameters']:,} parameters{macs}."
    )


def _shared_keys(kind: str) -> str:
    from advdiff_core.recipe.schema import TABLES

    for name, layout in TABLES.items():
        if layout.kind == kind:
            keys = [key.key for key in keys_of(layout.cls, skip=("spec",)) if "." not in key.key]
            return f"{', '.join(keys)} (advdiff explain recipe {name})" if keys else ""
    return ""


def _print_keys(keys: list[dict[str, Any]]) -> None:
    """Key, type and default in columns; help and bounds beside them, wrapped to the terminal."""
    if not keys:
        return
    rows = [(one["key"], one["type"], _default(one)) for one in keys]
    widths = [min(34, max(len(row[column]) for row in rows)) for column in range(3)]
    margin = 2 + sum(widths) + 6
    room = max(30, shutil.get_terminal_size((110, 24)).columns - margin)
    for row, one in zip(rows, keys, strict=True):
        left = "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines = textwrap.wrap(_words(one), room, break_on_hyphens=False) or [""]
        if len(left) > margin - 2:
            emit(left.rstrip())
            left = ""
        emit((left.ljust(margin) + lines[0]).rstrip())
        for line in lines[1:]:
            emit(" " * margin + line)


def _default(key: dict[str, Any]) -> str:
    return "required" if key["default"] is None else str(key["default"])


def _words(key: dict[str, Any]) -> str:
    unit = f" [{key['unit']}]" if key["unit"] else ""
    allowed = f"; {key['allowed']}" if key["allowed"] else ""
    return f"{escape(key['help'])}{unit}{allowed}"
