"""`advdiff evaluate RUN --attack ...`: options to a job, and a report to lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from advdiff_core.cli.output import emit, emit_json, shown, table
from advdiff_core.cli.purify import PurifyOptions
from advdiff_core.engine.launched import speaks
from advdiff_core.errors import UnsoundError, UsageError, escape
from advdiff_core.hooks.terminal import say

if TYPE_CHECKING:
    from advdiff_core.engine.api import Trained
    from advdiff_core.engine.robust.job import AttackJob
    from advdiff_core.engine.robust.result import RobustReport

__all__ = ["AttackOptions", "evaluate_under_attack", "robust_lines"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RADIUS = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER}))?\s*", re.ASCII)


@frozen(kw_only=True)
class AttackOptions:
    """The options of an evaluation under attack, as they were written.

    Attributes:
        attacks: Names or inline tables.
        settings: Texts `key=value` for the one attack.
        norm: Norm of the ball.
        eps: Radii, such as "8/255".
        objective: What is to grow.
        num: Samples.
        pick: Which samples.
        data: Inline table of a dataset.
        split: Part of the run's data.
        role: Model role.
        ema: Number of the average.
        t: Noise levels.
        batch: Samples per bucket.
        seed: Seed.
        save: Inputs saved.
        name: Name of the folder.
        strict: Whether a flag is an error.
        purify: Run of the denoiser that purifies, and how it does; see `PurifyOptions`.
    """

    attacks: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    norm: str = "linf"
    eps: tuple[str, ...] = ()
    objective: str = "classify"
    num: int | None = None
    pick: str = "first"
    data: str | None = None
    split: str | None = None
    role: str | None = None
    ema: int | None = None
    t: tuple[float, ...] = ()
    batch: int = 128
    seed: int = 0
    save: int = 0
    name: str = ""
    strict: bool = False
    purify: PurifyOptions = field(factory=PurifyOptions)

    def refuse_without_attack(self) -> None:
        """Refuse what means nothing where no attack is named.

        Raises:
            UsageError: Naming the option.
        """
        plain = AttackOptions(batch=self.batch, seed=self.seed, norm=self.norm)
        for name in ("settings", "eps", "objective", "num", "pick", "data", "split", "role", "ema",
                     "t", "save", "name", "strict", "purify"):  # fmt: skip
            if getattr(self, name) != getattr(plain, name):
                option = "-A" if name == "settings" else f"--{name}"
                message = "is for an evaluation under attack, and there is no --attack"
                raise UsageError(message, where=option, fix="name one, such as --attack pgd")

    def job(self) -> AttackJob:
        """What is evaluated.

        Raises:
            UsageError: If a radius is no number, or settings are given for several attacks.
            RecipeError: If a table cannot be parsed.
        """
        from advdiff_core.engine.robust.job import AttackJob
        from advdiff_core.recipe.named import table_of_text

        if self.settings and len(self.attacks) > 1:
            message = f"-A sets keys of one attack, and there are {len(self.attacks)}"
            fix = "write --attack '{use = \"pgd\", steps = 40}' for each"
            raise UsageError(message, where="-A", fix=fix)
        attacks = [table_of_text(one, self.settings, option="--attack") for one in self.attacks]
        data = None if self.data is None else table_of_text(self.data, option="--data")
        eps: Any = {"eps": tuple(map(_radius, self.eps))} if self.eps else {}
        chosen: dict[str, Any] = {
            "norm": self.norm, "objective": self.objective, "pick": self.pick,
        }  # fmt: skip
        return AttackJob(
            attacks=attacks, data=data, num=self.num, split=self.split, role=self.role,
            ema=self.ema, t=self.t, batch=self.batch, seed=self.seed, save=self.save,
            name=self.name, purify=self.purify.job(), **chosen, **eps,
        )  # fmt: skip


def _radius(text: str) -> float:
    """A radius on the [0, 1] scale: a number or a fraction."""
    match = _RADIUS.fullmatch(text)
    if match is None or (match[2] is not None and float(match[2]) == 0):
        message = f"found {text!r}, wanted a number or a fraction"
        raise UsageError(message, where="--eps", fix="write --eps 8/255")
    return float(match[1]) / float(match[2] or 1)


def evaluate_under_attack(
    trained: Trained, run: Path, options: AttackOptions, *, as_json: bool
) -> None:
    """Attack a run and print what is left of it.

    Args:
        trained: The run.
        run: Its folder, as it was written.
        options: The options.
        as_json: Print one line of JSON.

    Raises:
        UnsoundError: Under --strict, after the report, if a flag is raised.
        AdvdiffError: See `advdiff_core.engine.robust.evaluate.attack_run`.
    """
    from advdiff_core.engine.signals import stop_on_signals

    with stop_on_signals() as stop:
        report = trained.attack(options.job(), stop=stop, tell=say)
    if speaks() and as_json:
        emit_json({"run": run, "folder": report.folder, **report.as_json()})
    elif speaks():
        print_report(report)
    if options.strict and report.flags:
        codes = ", ".join(flag.code for flag in report.flags)
        count = len(report.flags)
        message = f"{count} {'flag' if count == 1 else 'flags'}: {codes}"
        fix = f"see {shown(report.folder / 'report.json')}"
        raise UnsoundError(message, code="E00", where=str(run), fix=fix)


def print_report(report: RobustReport) -> None:
    """Print a report for people."""
    from advdiff_core.report.robust import config_lines, robust_tables

    tables = report.as_json()
    emit(shown(report.folder))
    emit(table(config_lines(tables), indent="  "))
    for head, rows in robust_tables(tables):
        emit("")
        emit(table(rows, head, indent="  "))
    emit("")
    for note in report.notes:
        emit(f"  note: {escape(note, limit=600)}")
    for flag in report.flags:
        told = escape(f"{flag.message} - {flag.fix}", limit=900)
        emit(f"  flag [{flag.severity}] {flag.code}: {told}")


def robust_lines(records: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Stored evaluations as `advdiff show` prints them: a heading and a table each.

    Args:
        records: Name of the folder and content of `report.json` of each.
    """
    from advdiff_core.report.robust import robust_tables, title_of

    lines = []
    for name, tables in records:
        lines.append(f"  robust/{escape(name)}: {escape(title_of(tables), limit=400)}")
        head, rows = next(iter(robust_tables(tables)))
        lines.append(table(rows, head, indent="    "))
        lines.extend(f"    flag: {escape(one.get('code', ''))}" for one in tables.get("flags", ()))
    return lines
