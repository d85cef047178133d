"""The error family of advdiff: one line with place, what was found and wanted, and the mend.

Every error a user can cause is an `AdvdiffError`; its class fixes the exit code of the command
line. A `Fault` is one finding in a recipe; `RecipeError` carries all of them at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from attrs import asdict, frozen

__all__ = [
    "AdvdiffError",
    "ContractError",
    "DataError",
    "Fault",
    "Interrupted",
    "LostPeerError",
    "NumericsError",
    "PluginError",
    "RecipeError",
    "StorageError",
    "UndeclaredQueryError",
    "UnsoundError",
    "UsageError",
    "escape",
    "nearest",
    "one_line",
]

MAX_ECHO = 200
MAX_FAULTS = 20
MIN_SIMILARITY = 0.6


def escape(text: object, *, limit: int = MAX_ECHO) -> str:
    """Make a string from outside safe to print: control and bidi characters escaped, cut short.

    Args:
        text: Anything that came from a recipe, a file name, a plugin or an exception.
        limit: Longest echo, in characters.
    """
    shown = "".join(ch if ch.isprintable() else repr(ch)[1:-1] for ch in str(text))
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice a misspelt `name` probably meant, or None.

    The one with fewest letters added, dropped, changed or swapped with their neighbour; among
    equals one with the same letters, then the most similar one.
    """
    close = [choice for choice in choices if _similarity(name, choice) >= MIN_SIMILARITY]
    return min(close, key=lambda choice: _oddness(name, choice), default=None)


def _similarity(name: str, choice: str) -> float:
    return difflib.SequenceMatcher(None, name[:MAX_ECHO].casefold(), choice.casefold()).ratio()


def _oddness(name: str, choice: str) -> tuple[int, bool, float, str]:
    short, other = name[:MAX_ECHO].casefold(), choice.casefold()
    return _edits(short, other), sorted(short) != sorted(other), -_similarity(name, choice), choice


def _edits(name: str, choice: str) -> int:
    """Edit distance with swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    above = list(range(len(choice) + 1))
    for i, letter in enumerate(name, 1):
        row = [i]
        for j, other in enumerate(choice, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == choice[j - 2] and name[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, above = above, row
    return above[-1]


class AdvdiffError(Exception):
    """Base of every error that is shown to a user as one line.

    Args:
        message: What is wrong, with the value found and the value wanted.
        code: Short id of the fault (for example "D03"), printed in brackets; "" for none.
        where: File and line, key, plugin or tensor it is about; printed before the message.
        fix: The mend, printed after " - ".
    """

    exit_code: int = 70

    def __init__(self, message: str, *, code: str = "", where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.where = where
        self.fix = fix

    def lines(self) -> list[str]:
        """The message as printed on stderr, one entry a line."""
        return [one_line(self.message, code=self.code, where=self.where, fix=self.fix)]

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        fix = f" - {self.fix}" if self.fix else ""
        return f"{where}{self.message}{fix}"


def one_line(
    message: str, *, code: str = "", where: str = "", fix: str = "", level: str = "error"
) -> str:
    """Format `advdiff: error[CODE] where: message - fix`, escaped and on one line."""
    tag = f"{level}[{code}]" if code else level
    place = f" {escape(where)}:" if where else ""
    mend = f" - {escape(fix, limit=400)}" if fix else ""
    return f"advdiff: {tag}{place} {escape(message, limit=600)}{mend}"


class UsageError(AdvdiffError):
    """A wrong command-line argument."""

    exit_code = 2


@frozen(kw_only=True)
class Fault:
    """One finding in a recipe.

    Attributes:
        code: Fault id, for example "R06".
        file: File the value came from, or "-s" for an override; "" if the recipe was a dict.
        line: Line in `file`, 1-based; 0 when there is none.
        key: Dotted key, for example "terms.denoise.weight".
        message: What was found and what was wanted.
        fix: What to write instead.
        plugin: Distribution that owns the component, "" for the core's own keys.
    """

    code: str
    key: str
    message: str
    file: str = ""
    line: int = 0
    fix: str = ""
    plugin: str = ""

    def where(self) -> str:
        """`file:line: key`, leaving out what is unknown."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key) if part)

    def as_line(self, level: str = "error") -> str:
        """The finding as one printed line; `level` is "warning" for what does not stop a run."""
        owner = f" ({self.plugin})" if self.plugin else ""
        return one_line(
            self.message + owner, code=self.code, where=self.where(), fix=self.fix, level=level
        )

    def as_json(self) -> dict[str, object]:
        """The fault as the object `advdiff check --json` prints."""
        return asdict(self)


class RecipeError(AdvdiffError):
    """A recipe with at least one fault.

    Args:
        faults: Every fault found, in file order. At most 20 are printed.

    The exit code is 3 if all that is wrong are plugins, else 2.
    """

    exit_code = 2

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        if self.faults and all(fault.code.startswith("P") for fault in self.faults):
            self.exit_code = PluginError.exit_code
        super().__init__("; ".join(f.message for f in self.faults) or "recipe refused")

    def lines(self) -> list[str]:
        """One line per fault, at most 20, then how many were left out."""
        shown = [fault.as_line() for fault in self.faults[:MAX_FAULTS]]
        if len(self.faults) > MAX_FAULTS:
            shown.append(f"advdiff: {len(self.faults) - MAX_FAULTS} more faults are not shown")
        return shown

    def __str__(self) -> str:
        return "\n".join(self.lines())


class PluginError(AdvdiffError):
    """A plugin that is missing, broken, ambiguous or of another contract version."""

    exit_code = 3


class ContractError(PluginError):
    """A component that breaks the contract of its kind at run time."""


class UndeclaredQueryError(ContractError):
    """A query asked of a step whose plan does not hold it."""


class DataError(AdvdiffError):
    """Data, a model or a checkpoint that is missing, damaged or does not match."""

    exit_code = 4


class StorageError(AdvdiffError):
    """A write, a lock or a disk that failed."""

    exit_code = 5


class NumericsError(AdvdiffError):
    """A loss, gradient or state that is not finite."""

    exit_code = 6


class UnsoundError(AdvdiffError):
    """An evaluation that cannot be trusted, under `--strict`."""

    exit_code = 7


class LostPeerError(AdvdiffError):
    """Another process of a run is gone or does not answer.

    The run goes on from its newest checkpoint; whoever started the processes says which one failed.

    Attributes:
        run: Folder of the run, if it has a checkpoint to go on from; else "".
    """

    run: str = ""


class Interrupted(AdvdiffError):  # noqa: N818 - not a failure: the run can be continued.
    """The run was stopped by a signal and saved; running it again goes on."""

    exit_code = 75
