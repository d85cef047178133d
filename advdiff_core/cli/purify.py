"""The options `--purify...` of `advdiff evaluate`, gathered in one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from advdiff_core.errors import UsageError

if TYPE_CHECKING:
    from advdiff_core.engine.robust.job import Purify

__all__ = ["PurifyOptions", "purify_options"]


@frozen(kw_only=True)
class PurifyOptions:
    """The options of a purifier, as they were written.

    Attributes:
        run: Run of the denoiser; None for no purifier.
        t: Time that inputs are noised to.
        steps: Steps of the sampler.
        gradient: What the attack sees of it.
        last: Steps that a truncated gradient passes through.
        draws: Draws that a verdict looks at.
    """

    run: Path | None = None
    t: float | None = None
    steps: int | None = None
    gradient: str | None = None
    last: int | None = None
    draws: int | None = None

    def job(self) -> Purify | None:
        """The purifier, or None.

        Raises:
            UsageError: If the time is missing, or an option has no purifier to be about.
        """
        from advdiff_core.engine.robust.job import Purify

        keys: dict[str, Any] = {
            "t": self.t, "steps": self.steps, "gradient": self.gradient, "last": self.last,
            "draws": self.draws,
        }  # fmt: skip
        given = {name: value for name, value in keys.items() if value is not None}
        if self.run is None and given:
            message = "is about a purifier, and there is no --purify"
            fix = "name a run with a denoiser: --purify RUN"
            raise UsageError(message, where=f"--purify-{next(iter(given))}", fix=fix)
        if self.run is None:
            return None
        if self.t is None:
            message = "there is no time that inputs are noised to"
            raise UsageError(message, where="--purify-t", fix="write for example --purify-t 0.1")
        return Purify(run=self.run, **given)


_OPTIONS = (
    click.option(
        "--purify", "purify_run", metavar="RUN", type=click.Path(path_type=Path),
        help="Noise inputs and denoise them with the denoiser of this run before they are judged.",
    ),
    click.option(
        "--purify-t", metavar="T", type=float,
        help="Time that inputs are noised to, in the denoiser's own schedule.",
    ),
    click.option(
        "--purify-steps", metavar="N", type=click.IntRange(min=1),
        help="Steps of the sampler from there; 10 if left out.",
    ),
    click.option(
        "--purify-gradient", type=click.Choice(["full", "truncated", "surrogate", "identity"]),
        help="What the attack sees of the purifier; full if left out.",
    ),
    click.option(
        "--purify-last", metavar="N", type=click.IntRange(min=1),
        help="Steps that a truncated gradient passes through; 1 if left out.",
    ),
    click.option(
        "--purify-draws", metavar="N", type=click.IntRange(min=1),
        help="Draws of the noise that a verdict looks at; 8 if left out.",
    ),
)  # fmt: skip


def purify_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, which gets them as its argument `purify`."""

    @functools.wraps(command)
    def gathered(*args: Any, **given: Any) -> Any:
        names = ("run", "t", "steps", "gradient", "last", "draws")
        chosen = {name: given.pop(f"purify_{name}") for name in names}
        return command(*args, purify=PurifyOptions(**chosen), **given)

    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered
