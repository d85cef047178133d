"""`advdiff import`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advdiff_core.cli import options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, shown
from advdiff_core.errors import UsageError, escape

if TYPE_CHECKING:
    from advdiff_core.engine.importing.run import Target

_SHAPE = re.compile(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5}){0,2}")


@click.command("import")
@click.argument("file", metavar="FILE", type=Path)
@click.option("--use", metavar="BACKBONE", help="The network, as after use = in a recipe.")
@click.option(
    "--shape", metavar="CxHxW", default="3x32x32", show_default=True,
    help="Shape of its inputs (with --use).",
)  # fmt: skip
@click.option(
    "--classes", metavar="N", type=click.IntRange(min=0), default=0, show_default=True,
    help="Classes of the data (with --use).",
)  # fmt: skip
@click.option(
    "--domain", metavar="LOW HIGH", nargs=2, type=float, default=(-1.0, 1.0), show_default=True,
    help="Range of the pixels (with --use).",
)  # fmt: skip
@click.option(
    "--recipe", metavar="RECIPE", type=Path,
    help="Instead of --use: take network, settings and data from a recipe.",
)  # fmt: skip
@click.option("--role", metavar="ROLE", help="The role in the recipe; student if left out.")
@click.option(
    "-s", "--set", "overrides", metavar="KEY=VALUE", multiple=True,
    help="Set a key of the network's table, for example -s depth=28; with --recipe, of the "
    "recipe. May be repeated.",
)  # fmt: skip
@click.option(
    "--key", metavar="KEY", help="Which weights, if the file holds several, for example ema."
)
@click.option(
    "--drop", metavar="PATTERN", multiple=True,
    help="Leave out names of the file, for example 'aux_head.*'. May be repeated.",
)  # fmt: skip
@click.option(
    "--expect", metavar="FILE", type=Path,
    help="safetensors with x and output (c_noise, labels) of the original network, to compare.",
)  # fmt: skip
@click.option(
    "--out", metavar="FOLDER", type=click.Path(path_type=Path), required=True,
    help="Where the weights go; it must not exist.",
)  # fmt: skip
@options.as_json
@click.pass_context
def command(  # noqa: PLR0913 - one argument per option.
    ctx: click.Context,
    file: Path,
    use: str | None,
    shape: str,
    classes: int,
    domain: tuple[float, float],
    recipe: Path | None,
    role: str | None,
    overrides: tuple[str, ...],
    key: str | None,
    drop: tuple[str, ...],
    expect: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Take over a checkpoint of another program, as safetensors.

    Reads safetensors, torch.save files and EDM's pickles as data: nothing in them is run.
    Every tensor must fit the network by name and shape. A recipe takes the result by
    init = "FOLDER".
    """
    if (use is None) == (recipe is None):
        fix = "name the network by --use BACKBONE, or by --recipe RECIPE --role ROLE"
        found = "neither --use nor --recipe" if use is None else "both --use and --recipe"
        raise UsageError(f"found {found}", where="advdiff import", fix=fix)
    sides = _sides(shape)
    from advdiff_core.engine.importing.fit import Mismatched
    from advdiff_core.engine.importing.folder import check_target
    from advdiff_core.engine.importing.run import import_checkpoint

    # Before a large network is built.
    check_target(out)
    if recipe is not None:
        target = _of_recipe(recipe, role or "student", overrides)
    else:
        target = _of_name(str(use), overrides, sides, classes, domain)
    try:
        facts = import_checkpoint(file, out, target, key=key, drop=drop, expect=expect)
    except Mismatched as error:
        if as_json:
            emit_json(error.as_json())
        raise
    if as_json:
        emit_json({"out": out, **facts})
    else:
        _print(file, out, facts)


def _sides(text: str) -> tuple[int, ...]:
    if not _SHAPE.fullmatch(text):
        message = f"found {escape(text, limit=40)!r}, wanted sizes such as 3x32x32"
        raise UsageError(message, where="--shape", fix="write channels, height, width")
    return tuple(map(int, text.split("x")))


def _of_recipe(recipe: Path, role: str, overrides: tuple[str, ...]) -> Target:
    from advdiff_core.engine.importing.target import role_target
    from advdiff_core.recipe import load_recipe

    return role_target(load_recipe(recipe, overrides, catalogue()), role)


def _of_name(
    use: str,
    overrides: tuple[str, ...],
    sides: tuple[int, ...],
    classes: int,
    domain: tuple[float, float],
) -> Target:
    from advdiff_core.engine.importing.target import named_target
    from advdiff_core.types import DataInfo, Domain

    if not domain[0] < domain[1]:
        message = f"found {domain[0]:g} {domain[1]:g}, wanted a low and a higher number"
        raise UsageError(message, where="--domain", fix="write for example --domain 0 1")
    pixels = Domain(*domain) if len(sides) == 3 else None
    data = DataInfo(shape=sides, count=1, domain=pixels, classes=classes)
    return named_target(use, overrides, data, catalogue())


def _print(file: Path, out: Path, facts: dict[str, Any]) -> None:
    source, fit = facts["source"], facts["fit"]
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(facts["dtypes"].items()))
    key = f", key {escape(source['key'])}" if source["key"] else ""
    emit(f"{shown(out)}: {escape(facts['model']['use'])}, {facts['parameters']:,} parameters")
    emit(f"  from {shown(file)} ({source['format']}{key}): tensors {kinds}, kept as they are")
    notes = [f"prefix {fit['prefix']} removed"] if fit["prefix"] else []
    notes += [f"prefix {fit['added']} added"] if fit["added"] else []
    notes += [f"{len(fit['dropped'])} left out"] if fit["dropped"] else []
    notes += [f"{len(fit['as_built'])} counters of batches as built"] if fit["as_built"] else []
    if notes:
        emit(f"  names: {escape(', '.join(notes))}")
    origin = facts["golden"]["source"]
    emit(f"  golden forward of {escape(origin)}, to be compared whenever the weights are loaded")
    emit("  in a recipe:")
    for line in _table(out, facts):
        emit(f"    {line}")


def _table(out: Path, facts: dict[str, Any]) -> list[str]:
    """The table of a recipe that takes the weights."""
    kind = {"parametrization": "none"} if facts["classifier"] else {}
    model = {**facts["model"], **kind, "init": str(out)}
    lines = [f"{key} = {_toml(value)}" for key, value in model.items()]
    return ["[models.student]", *(escape(line, limit=4096) for line in lines)]


def _toml(value: Any) -> str:
    """A setting on one line; TOML writes all but tables as JSON does."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
