"""`advdiff evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from advdiff_core.cli import options
from advdiff_core.cli.app import Site
from advdiff_core.cli.attacks import AttackOptions, evaluate_under_attack
from advdiff_core.cli.measured import measured, measured_json
from advdiff_core.cli.output import emit, emit_json, say_skipped, shown
from advdiff_core.cli.purify import PurifyOptions, purify_options
from advdiff_core.cli.shipped import metrics_of
from advdiff_core.engine.launched import speaks
from advdiff_core.errors import UsageError

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.distributed import World


@click.command("evaluate")
@options.run
@options.checkpoint
@click.option(
    "--attack", "attacks", metavar="NAME", multiple=True,
    help="Attack the run instead: a name, or a table such as '{use=\"pgd\", steps=40}'. May be "
    "repeated: the worst of all counts.",
)  # fmt: skip
@click.option(
    "-A", "settings", metavar="KEY=VALUE", multiple=True,
    help="Set a key of the one attack, for example -A steps=40. May be repeated.",
)  # fmt: skip
@click.option(
    "--norm", type=click.Choice(["linf", "l2", "l1"]), default="linf", show_default=True,
    help="Norm of the ball.",
)  # fmt: skip
@click.option(
    "--eps", metavar="RADIUS", multiple=True,
    help="Radius on the [0, 1] scale, for example 8/255, which it is if left out. Several make a "
    "curve.",
)  # fmt: skip
@click.option(
    "--objective", default="classify", show_default=True,
    type=click.Choice(["classify", "prediction-gap", "denoise", "sample-distance"]),
    help="What is attacked: a classifier's verdict, or of a denoiser its prediction, its loss, the "
    "sampler's output.",
)  # fmt: skip
@click.option(
    "--num", metavar="N", type=click.IntRange(min=1),
    help="Samples; all of the data if left out, 64 of a sampler.",
)  # fmt: skip
@click.option(
    "--pick", type=click.Choice(["first", "spread"]), default="first", show_default=True,
    help="The first N samples, or N spread evenly over the data.",
)  # fmt: skip
@click.option(
    "--data", metavar="TABLE",
    help="Dataset to attack on, for example '{use=\"cifar10\", path=\"cifar\", split=\"test\"}'.",
)  # fmt: skip
@click.option(
    "--split", metavar="NAME",
    help="Part of the run's own data; test (or val) where they have one.",
)  # fmt: skip
@click.option("--role", metavar="ROLE", help="Which model of the run.")
@click.option(
    "--ema", metavar="K", type=click.IntRange(min=-1),
    help="Which of the averages of the weights; -1 for the raw weights; what metrics use if left "
    "out.",
)  # fmt: skip
@click.option("--t", metavar="T", type=float, multiple=True, help="Noise level of a denoiser.")
@click.option(
    "--batch", metavar="N", type=click.IntRange(min=1), default=128, show_default=True,
    help="Samples attacked at once.",
)  # fmt: skip
@click.option(
    "--seed", metavar="S", type=click.IntRange(min=0), default=0, show_default=True,
    help="Seed of the attacks.",
)  # fmt: skip
@click.option(
    "--save", metavar="N", type=click.IntRange(min=0), default=0,
    help="Save N adversarial inputs, as a picture and as tensors.",
)  # fmt: skip
@click.option(
    "--name", metavar="NAME", default="",
    help="Folder in RUN/robust; made from the options if left out.",
)  # fmt: skip
@click.option(
    "--metrics", metavar="RECIPE",
    help="Measure by the metrics of another recipe, a file or DIST:NAME as a plugin ships it.",
)  # fmt: skip
@purify_options
@click.option("--strict", is_flag=True, help="Fail (7) if anything makes the number doubtful.")
@options.overrides
@options.nproc
@options.as_json
@click.pass_obj
def command(  # noqa: PLR0913 - one argument per option.
    site: Site,
    run: Path,
    checkpoint: int | Literal["best"] | None,
    attacks: tuple[str, ...],
    settings: tuple[str, ...],
    norm: str,
    eps: tuple[str, ...],
    objective: str,
    num: int | None,
    pick: str,
    data: str | None,
    split: str | None,
    role: str | None,
    ema: int | None,
    t: tuple[float, ...],
    batch: int,
    seed: int,
    save: int,
    name: str,
    metrics: str | None,
    purify: PurifyOptions,
    strict: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compute the metrics of a trained run, or attack it.

    \b
    advdiff evaluate runs/00001-digits
    advdiff evaluate runs/00001-digits -s evaluate.metrics='[{use="frechet"}]'
    advdiff evaluate runs/00001-digits --metrics other.toml
    advdiff evaluate runs/00002-resnet --attack pgd -A steps=40 --eps 8/255

    Samples as the table [evaluate] of the run's recipe says, and stores every number with its
    protocol in RUN/evaluation.json. With -s the run is measured in another way: keys of evaluate,
    sample and run, and frozen models with init. Recipes without a denoiser are not sampled.

    With --attack the run's classifier is attacked, on held-out data where there are some: exact
    counts, intervals, the curve over --eps, a line per sample in RUN/robust. The same command goes
    on after a kill. Numbers are printed only if every attack ran and what it returned passed a
    check that no attack shares.

    With --purify the classifier judges inputs that were noised and denoised by another run.
    """  # noqa: D301 - \b keeps the lines apart in the help.
    attacked = AttackOptions(
        attacks=attacks, settings=settings, norm=norm, eps=eps, objective=objective, num=num,
        pick=pick, data=data, split=split, role=role, ema=ema, t=t, batch=batch, seed=seed,
        save=save, name=name, strict=strict, purify=purify,
    )  # fmt: skip
    if not attacks:
        attacked.refuse_without_attack()
    wanted = (*_borrowed(metrics, attacks), *overrides)
    _evaluate(site, run, checkpoint, wanted, attacked, as_json=as_json)


def _evaluate(  # noqa: PLR0913 - a run, what is measured, and how it is told.
    site: Site,
    run: Path,
    checkpoint: int | Literal["best"] | None,
    overrides: tuple[str, ...],
    attacked: AttackOptions,
    *,
    as_json: bool,
) -> None:
    """Attack the run if attacks are named, else measure it; by all processes together."""
    from advdiff_core.engine.distributed import joined_world

    with joined_world() as world:
        trained = _opened(run, checkpoint, overrides, world)
        site.folder = trained.rundir.path
        if attacked.attacks:
            evaluate_under_attack(trained, run, attacked, as_json=as_json)
        else:
            _measure(trained, run, as_json=as_json)


def _opened(
    run: Path, checkpoint: int | Literal["best"] | None, overrides: tuple[str, ...], world: World
) -> Trained:
    """The run; tells of checkpoints that were skipped."""
    from advdiff_core.engine.api import open_trained

    trained = open_trained(run, checkpoint=checkpoint, overrides=overrides, world=world)
    say_skipped(trained)
    return trained


def _borrowed(metrics: str | None, attacks: tuple[str, ...]) -> tuple[str, ...]:
    """The metrics of another recipe as an override, if `--metrics` names one.

    Raises:
        UsageError: If attacks are asked for, too.
    """
    if metrics is None:
        return ()
    if attacks:
        message = "found beside --attack, which measures accuracy alone"
        raise UsageError(message, where="--metrics", fix="leave one of the two out")
    return (metrics_of(metrics),)


def _measure(trained: Trained, run: Path, *, as_json: bool) -> None:
    """Compute the recipe's metrics and print them."""
    found = trained.evaluate()
    if not speaks():
        return
    if as_json:
        emit_json({"run": run, "nimg": trained.nimg, **measured_json(found)})
    elif found["metrics"]:
        emit(f"{shown(run)}, {trained.nimg:,} images")
        emit(measured(found))
    else:
        emit("the recipe names no metrics: add them to [evaluate]")
