"""`advdiff show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advdiff_core.cli import completion, options
from advdiff_core.cli.attacks import robust_lines
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.measured import measured, measured_json
from advdiff_core.cli.output import emit, emit_json, number, quoted, shown, table
from advdiff_core.errors import UsageError, escape

if TYPE_CHECKING:
    from advdiff_core.report.record import RunRecord

MAX_TEXT = 100


@click.command("show")
@click.argument(
    "what", metavar="RUN|RECIPE", type=Path, required=False, shell_complete=completion.paths
)
@click.option(
    "--resolved", is_flag=True,
    help="Print the whole recipe, every default filled in (of a RECIPE: imports what it names).",
)  # fmt: skip
@click.option(
    "--diff", metavar="A B", nargs=2, type=Path, default=None, shell_complete=completion.paths,
    help="Print the keys in which two runs or recipes differ.",
)  # fmt: skip
@options.overrides
@options.as_json
def command(
    what: Path | None,
    resolved: bool,
    diff: tuple[Path, Path] | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say how far a run is, or print a recipe; compare two.

    \b
    advdiff show runs/00001-digits                how far it is and its metrics
    advdiff show runs/00001-digits --resolved     the recipe it was trained by
    advdiff show digits.toml -s run.seed=1        the recipe with all it extends
    advdiff show --diff runs/00001-a runs/00002-b

    Imports neither torch nor a plugin, but for --resolved with a recipe.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    if diff is not None:
        _show_difference(*diff, overrides, as_json)
    elif what is None:
        fix = "give a run folder or a recipe, or --diff A B; see 'advdiff show --help'"
        raise UsageError("there is nothing to show", where="advdiff show", fix=fix)
    elif what.is_dir() and not resolved:
        _show_run(what, as_json)
    else:
        _show_recipe(_resolved(what, overrides) if resolved else _tables(what, overrides), as_json)


def _show_run(folder: Path, as_json: bool) -> None:
    from advdiff_core.report.record import read_record

    record = read_record(folder)
    if as_json:
        emit_json(_facts(record))
    else:
        _print_run(record)


def _facts(record: RunRecord) -> dict[str, Any]:
    return {
        "run": record.folder,
        "state": record.state,
        "nimg": record.nimg,
        "images": record.images,
        **measured_json(record.evaluation),
        "robust": dict(record.robust),
        "last": dict(record.rows[-1]) if record.rows else {},
        "checkpoints": record.checkpoints,
        **({"best": record.standing.as_json()} if record.standing.number else {}),
        "provenance": record.provenance,
        "problems": record.problems,
    }


def _print_run(record: RunRecord) -> None:
    holder = f", by {escape(record.holder)}" if record.holder else ""
    facts: list[tuple[str, str]] = [
        ("state", record.state + holder),
        ("images", _how_far(record)),
        ("checkpoint", f"{record.checkpoints[0]:,}" if record.checkpoints else "none"),
    ]
    if str(record.standing):
        facts.append(("best", escape(record.standing)))
    facts += [(key, number(value)) for key, value in _losses(record).items()]
    emit(shown(record.folder))
    emit(table(facts, indent="  "))
    if record.metrics:
        emit(measured(record.evaluation))
    for line in robust_lines(record.robust):
        emit(line)
    for problem in record.problems:
        emit(f"  problem: {escape(problem, limit=600)}")
    if record.state == "stopped":
        emit(f"go on with: advdiff train --resume {quoted(record.folder)}")


def _losses(record: RunRecord) -> dict[str, Any]:
    """Losses of the newest line of the log that has any."""
    for row in reversed(record.rows):
        found = {key: value for key, value in row.items() if key.startswith("loss")}
        if found:
            return found
    return {}


def _how_far(record: RunRecord) -> str:
    if record.nimg > record.images:
        return f"{record.nimg:,}, beyond the {record.images:,} of its recipe"
    share = f" ({100 * record.nimg // record.images} %)" if record.images else ""
    return f"{record.nimg:,} of {record.images:,}{share}"


def _tables(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """A run's or recipe's tables: as resolved for a run, as written (bases merged) for a recipe."""
    if path.is_dir():
        from advdiff_core.report.record import read_record

        return dict(read_record(path).recipe)
    from advdiff_core.recipe.extends import with_bases
    from advdiff_core.recipe.overrides import apply_overrides
    from advdiff_core.recipe.read import read_file

    return apply_overrides(with_bases(read_file(path), catalogue()), overrides).data


def _resolved(path: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    if path.is_dir() and not overrides:
        return _tables(path, overrides)
    from advdiff_core.recipe import load_recipe

    source = path / completion.LOCK if path.is_dir() else path
    return load_recipe(source, overrides, catalogue()).to_dict()


def _show_recipe(tables: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(tables)
        return
    import tomli_w

    emit(tomli_w.dumps(tables).rstrip())


def _show_difference(first: Path, second: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    from advdiff_core.report.compare import flat

    # A run holds every default; a recipe is filled in to compare like with like.
    filled = first.is_dir() != second.is_dir()
    old, new = (
        dict(flat(_resolved(path, overrides) if filled else _tables(path, overrides)))
        for path in (first, second)
    )
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if as_json:
        emit_json([{"key": key, "a": old.get(key), "b": new.get(key)} for key in keys])
    elif not keys:
        emit("no difference")
    else:
        rows = [(key, _shown(old, key), _shown(new, key)) for key in keys]
        emit(table(rows, ("key", str(first), str(second))))


def _shown(values: Mapping[str, Any], key: str) -> str:
    return escape(repr(values[key]), limit=MAX_TEXT) if key in values else "-"
