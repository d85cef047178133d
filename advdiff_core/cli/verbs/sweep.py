"""`advdiff sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advdiff_core.cli import options
from advdiff_core.cli.app import Site
from advdiff_core.cli.output import emit, emit_json, quoted, say_warnings, shown, table
from advdiff_core.errors import Interrupted, UsageError, escape, nearest
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from advdiff_core.recipe import Recipe
    from advdiff_core.sweep.folder import SweepDir
    from advdiff_core.sweep.grid import Axis, Point
    from advdiff_core.sweep.launch import Launcher
    from advdiff_core.sweep.summary import Summary

WHERE = "advdiff sweep"
HTML = "summary.html"


@click.command("sweep")
@options.recipe(required=False)
@click.option(
    "-s", "--set", "grid", metavar="KEY=VALUE[,VALUE...]", multiple=True,
    help="A key of the recipe and its values, for example -s terms.adv.weight=0.1,0.3; one value "
    "holds for all runs. Commas in brackets or quotes belong to a value. May be repeated.",
)  # fmt: skip
@click.option(
    "--seeds", metavar="N", type=click.IntRange(1), default=None,
    help="Repeat each run with N seeds, from the recipe's on.",
)  # fmt: skip
@click.option(
    "--jobs", metavar="N", type=click.IntRange(1), default=None,
    help="Runs at a time; 1 if left out, on a cluster all.",
)  # fmt: skip
@click.option(
    "--on", type=click.Choice(["local", "submitit", "ray"]), default="local",
    help="Where runs are made: here, on Slurm through submitit, or on Ray.",
)  # fmt: skip
@click.option(
    "--option", "settings", metavar="KEY=VALUE", multiple=True,
    help="Handed to submitit or Ray, for example --option timeout_min=600 --option "
    "slurm_partition=gpu. May be repeated.",
)  # fmt: skip
@options.out("Folder that the numbered sweep folder is made in; sweeps if left out.")
@click.option(
    "--resume", metavar="SWEEP", type=Path, default=None,
    help="Go on with this sweep: what is stopped, failed or not begun.",
)  # fmt: skip
@click.option(
    "--only", metavar="NAME", default=None,
    help="With --resume: make this one run, in this process, as the job of a cluster does.",
)  # fmt: skip
@click.option("--list", "listed", is_flag=True, help="Print the runs, and start none.")
@options.as_json
@click.pass_obj
def command(  # noqa: PLR0913 - one argument per option.
    site: Site,
    recipe: Path | None,
    grid: tuple[str, ...],
    seeds: int | None,
    jobs: int | None,
    on: str,
    settings: tuple[str, ...],
    out: Path | None,
    resume: Path | None,
    only: str | None,
    listed: bool,
    as_json: bool,
) -> None:
    """Train at every point of a grid, a process per run, with one summary.

    \b
    advdiff sweep digits.toml -s terms.equivariance.weight=0.1,0.3,1 --seeds 3
    advdiff sweep digits.toml -s data.use=digits,moons -s run.batch=64 --jobs 2
    advdiff sweep --resume sweeps/00000-digits

    Every combination of values is a run of its own, in sweeps/NNNNN-name/runs. All recipes are
    checked before the first run begins. Ctrl-C lets the runs save and stops; --resume goes on.
    In the end summary.html has a table and plots, summary.csv and summary.json every number.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    _check_arguments(recipe, resume, only, fresh=bool(grid or seeds or out or listed))
    # Before a folder is made that nothing could run in.
    chosen = _options_of(on, settings)
    if resume is not None:
        from advdiff_core.sweep.folder import open_sweep

        sweep = open_sweep(resume)
        if only is not None:
            _run_one(site, sweep, only)
            return
    else:
        assert recipe is not None
        axes, points = _checked(recipe, grid, seeds)
        if listed:
            _print_points([point for point, _ in points], as_json=as_json)
            return
        sweep = _begin(recipe, axes, points, out)
    _work(sweep, _launcher(sweep, on, jobs, chosen), as_json=as_json)


def _check_arguments(
    recipe: Path | None, resume: Path | None, only: str | None, *, fresh: bool
) -> None:
    if (recipe is None) == (resume is None):
        fix = "give a RECIPE, or a sweep to go on with: --resume SWEEP"
        said = "there is nothing to do" if recipe is None else "RECIPE and --resume contradict"
        raise UsageError(said, where=WHERE, fix=fix)
    if resume is not None and fresh:
        fix = "leave out -s, --seeds, --out and --list: the runs of a sweep are fixed"
        raise UsageError("a sweep that goes on cannot be changed", where=WHERE, fix=fix)
    if only is not None and resume is None:
        fix = "name the sweep by --resume"
        raise UsageError("--only is about a sweep that is there", where=WHERE, fix=fix)


def _checked(
    path: Path, grid: tuple[str, ...], seeds: int | None
) -> tuple[tuple[Axis, ...], list[tuple[Point, Recipe]]]:
    """The axes, and the points with their recipes; every fault of all of them is reported."""
    from advdiff_core.sweep.grid import axes_of, points_of
    from advdiff_core.sweep.recipes import recipes_of, with_seeds

    axes = axes_of(grid)
    if seeds is not None:
        axes = with_seeds(axes, seeds, path)
    return axes, recipes_of(path, points_of(axes))


def _begin(
    path: Path, axes: tuple[Axis, ...], points: list[tuple[Point, Recipe]], out: Path | None
) -> SweepDir:
    from advdiff_core.recipe.fill import run_name
    from advdiff_core.sweep.folder import new_sweep

    say_warnings(points[0][1])
    sweep = new_sweep(out or Path("sweeps"), run_name(path), axes, points)
    say(f"advdiff: {shown(sweep.path)}: {len(points)} runs; Ctrl-C lets them save and stops")
    return sweep


def _print_points(points: list[Point], *, as_json: bool) -> None:
    if as_json:
        rows = [{"name": p.name, "overrides": list(p.overrides)} for p in points]
        emit_json({"runs": rows})
        return
    emit(table([(point.name, "  ".join(point.overrides)) for point in points]))


def _run_one(site: Site, sweep: SweepDir, name: str) -> None:
    """What the process of a run does."""
    from advdiff_core.cli.verbs.train import run_training

    points = {point.name: point for point in sweep.points}
    if name not in points:
        near = nearest(name, points)
        fix = f"did you mean {near}?" if near else "see the names in its folder recipes"
        message = f"there is no run {escape(name, limit=80)!r} in this sweep"
        raise UsageError(message, where=str(sweep.path), fix=fix)
    point = points[name]
    if sweep.status(point).state == "finished":
        return
    folder = sweep.run_of(point)
    if folder is None:
        run_training(site, sweep.recipe(point), out=sweep.runs)
    else:
        run_training(site, None, resume=folder)


def _options_of(on: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Values of `--option` by key, as TOML reads them, for a library that is there."""
    from advdiff_core.recipe.overrides import parsed

    if arguments and on == "local":
        fix = "add --on submitit or --on ray"
        raise UsageError("--option is for clusters", where=WHERE, fix=fix)
    if on != "local":
        from advdiff_core.sweep.clusters import require

        require(on)
    return dict(parsed(one) for one in arguments)


def _launcher(sweep: SweepDir, on: str, jobs: int | None, settings: Mapping[str, Any]) -> Launcher:
    if on == "local":
        from advdiff_core.sweep.launch import Local

        return Local(slots=jobs or 1)
    from advdiff_core.sweep.clusters import Ray, Submitit

    if on == "ray":
        return Ray(slots=jobs or 0, options=settings)
    return Submitit(folder=sweep.path / "submitit", slots=jobs or 0, options=settings)


def _work(sweep: SweepDir, launcher: Launcher, *, as_json: bool) -> None:
    """Run what is open, and summarise whatever has become of it."""
    from advdiff_core.engine.signals import stop_on_signals
    from advdiff_core.sweep.summary import summary_of
    from advdiff_core.sweep.work import RunsFailedError, work_off

    held = sweep.lock()
    try:
        with stop_on_signals() as stop:
            failures = work_off(
                sweep, launcher, stop=lambda: bool(stop), tell=lambda line: say(f"advdiff: {line}")
            )
        summary = summary_of(sweep)
        _write(sweep, summary)
        _print(sweep, summary, as_json=as_json)
    finally:
        held.release()
    if stop and summary.finished < len(summary.rows):
        message = f"stopped with {summary.finished} of {len(summary.rows)} runs finished"
        fix = f"go on with: advdiff sweep --resume {sweep.path}"
        raise Interrupted(message, where=str(sweep.path), fix=fix)
    if failures:
        raise RunsFailedError(failures, sweep)


def _write(sweep: SweepDir, summary: Summary) -> None:
    from advdiff_core.engine import strict_json
    from advdiff_core.sweep.page import render

    sweep.write(HTML, render(sweep.path.resolve().name, summary))
    sweep.write("summary.csv", summary.as_csv())
    sweep.write("summary.json", strict_json.dumps(summary.as_json()))


def _print(sweep: SweepDir, summary: Summary, *, as_json: bool) -> None:
    if as_json:
        emit_json({"sweep": sweep.path, **summary.as_json()})
        return
    head, rows = summary.table()
    emit(table(rows, head))
    for note in summary.notes():
        emit(f"note: {note}")
    emit(f"summary: {quoted(sweep.path / HTML)}")
