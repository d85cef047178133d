"""`advdiff new-plugin`."""

from __future__ import annotations

from pathlib import Path

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, quoted, shown
from advdiff_core.errors import UsageError, nearest


@click.command("new-plugin")
@click.argument("name", metavar="NAME")
@click.option(
    "--kind", "kinds", metavar="KIND", multiple=True, required=True,
    shell_complete=completion.kinds,
    help="Kind of component it offers, for example perturbation; may be repeated; all: every kind.",
)  # fmt: skip
@options.out("Folder to make; NAME in this folder if left out. Must be empty if it exists.")
@click.option(
    "--component", metavar="NAME", default=None,
    help="What recipes write after use =; the plugin's name without advdiff- if left out.",
)  # fmt: skip
@click.option(
    "--licence", "--license", "licence", metavar="NAME", default="apache-2.0",
    help="apache-2.0 (the default), mit or bsd-3-clause.",
)  # fmt: skip
@click.option("--author", metavar="NAME", default="", help="Who holds the copyright.")
@options.as_json
def command(  # noqa: PLR0913 - the options of the verb.
    name: str, kinds: tuple[str, ...], out: Path | None, component: str | None, licence: str,
    author: str, as_json: bool,
) -> None:  # fmt: skip
    """Make a plugin: a whole distribution, with a working example of each kind.

    NAME is what it is called on the package index, for example advdiff-mine. It holds a
    pyproject.toml with entry points, a module and a test per kind, the laws of every component, a
    recipe that trains with them in less than a minute, and a CI file. It passes its tests, ruff,
    mypy --strict and "advdiff check-plugin" as it is; edit from there.
    """
    from advdiff_core.kit.naming import names_of, refuse_clashes
    from advdiff_core.kit.scaffold import LICENCES, components_of, render, write

    wanted, chosen = _kinds(kinds), _one_of(licence.lower(), list(LICENCES), "--licence", "licence")
    names = names_of(name, component)
    parts = components_of(names, wanted)
    refuse_clashes(list(parts), catalogue(), names)
    target = out or Path(names.distribution)
    files = render(names, wanted, licence=chosen, author=author)
    write(files, target)
    if as_json:
        rows = [{"kind": kind, "name": one, "value": parts[kind, one]} for kind, one in parts]
        emit_json({"folder": target, "name": names.distribution, "components": rows})
        return
    emit(f"{shown(target)}: {names.distribution}, {len(files)} files")
    emit(f"next: cd {quoted(target)} && pip install -e '.[test]' && python -m pytest")


def _kinds(kinds: tuple[str, ...]) -> list[str]:
    from advdiff_core.kit.scaffold import PARTS

    if "all" in kinds:
        return list(PARTS)
    return [_one_of(kind.replace("-", "_"), [*PARTS, "all"], "--kind", "kind") for kind in kinds]


def _one_of(found: str, known: list[str], where: str, what: str) -> str:
    if found in known:
        return found
    near = nearest(found, known)
    fix = f"did you mean {near!r}?" if near else f"there are {', '.join(known)}"
    raise UsageError(f"there is no {what} {found!r}", where=where, fix=fix)
