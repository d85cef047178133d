"""`advdiff data`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advdiff_core.cli import options
from advdiff_core.cli.environment import catalogue
from advdiff_core.cli.output import emit, emit_json, number, say_warnings, shown, table
from advdiff_core.errors import UsageError

if TYPE_CHECKING:
    from advdiff_core.engine.look import DataReport

PNG = b"\x89PNG\r\n\x1a\n"


@click.command("data")
@options.recipe()
@options.overrides
@click.option(
    "--num", metavar="N", type=click.IntRange(1, 1024), default=16, show_default=True,
    help="Samples per row of the picture.",
)  # fmt: skip
@click.option(
    "--out", metavar="FILE.png", type=click.Path(path_type=Path), default=None,
    help="Where the picture goes; NAME-data.png in this folder if left out.",
)  # fmt: skip
@options.as_json
def command(
    recipe: Path, overrides: tuple[str, ...], num: int, out: Path | None, *, as_json: bool
) -> None:
    r"""Show what a recipe's model will see: a picture and statistics.

    \b
    advdiff data recipe.toml
    advdiff data recipe.toml -s data.use=digits --num 32 --out look.png

    Reads the data as training does (damage, augmentations, noise) and builds no
    model. Says how many images a second the feed gives on this machine.
    """
    from advdiff_core.engine.look import look
    from advdiff_core.hooks.files import write_file
    from advdiff_core.hooks.pictures import rows_png
    from advdiff_core.recipe import load_recipe

    loaded = load_recipe(recipe, overrides, catalogue())
    say_warnings(loaded)
    target = out or Path(f"{loaded.run.name}-data.png")
    _refuse_others(target)
    found = look(loaded, num)
    write_file(target, rows_png(list(found.rows.items()), found.info.domain))
    if as_json:
        emit_json({**found.as_json(), "picture": str(target)})
    else:
        _print(found, target)


def _refuse_others(target: Path) -> None:
    """A picture may be made anew; another file must not be lost."""
    if target.suffix.lower() != ".png":
        fix = f"write --out {target.name}.png"
        raise UsageError(
            f"the picture is a PNG file, found {target.name!r}", where="--out", fix=fix
        )
    if target.exists() and not (target.is_file() and target.read_bytes()[:8] == PNG):
        message = "is there already and is no PNG file"
        raise UsageError(message, where=str(target), fix="choose another name with --out")


def _print(found: DataReport, target: Path) -> None:
    info = found.info
    low_high = f"[{number(found.low)}, {number(found.high)}]"
    domain = "none" if info.domain is None else f"[{info.domain.low:g}, {info.domain.high:g}]"
    rows = [
        ("samples", f"{info.count:,} of shape {list(info.shape)}"),
        ("domain", f"{domain}, values found in {low_high}"),
        ("mean", "  ".join(f"{value:.4f}" for value in found.mean[:8])),
        ("std", "  ".join(f"{value:.4f}" for value in found.std[:8])),
        ("classes", _classes(found)),
        *_subspace(found),
        ("corrupted", f"{found.corrupted:.2%}"),
        ("skipped", f"{found.skipped:,}"),
        ("feed", f"{number(round(found.images_per_s))} images/s"),
        ("fingerprint", found.fingerprint[:16]),
        ("picture", shown(target)),
    ]
    emit(table(rows))
    if found.scanned < info.count:
        emit(f"numbers are of {found.scanned:,} samples, evenly spread")


def _subspace(found: DataReport) -> list[tuple[str, str]]:
    known = found.info.subspace
    if known is None:
        return []
    inside, around = known.basis.shape
    return [("subspace", f"{inside} of {around} dimensions, {known.explained:.2%} of the variance")]


def _classes(found: DataReport) -> str:
    if not found.labels:
        return "none"
    least, most = min(found.labels), max(found.labels)
    return f"{len(found.labels)}, of {least:,} to {most:,} samples each"
