"""Processes that do a thing together: all succeed, or all report the same failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import frozen

from advdiff_core.errors import (
    AdvdiffError,
    DataError,
    Interrupted,
    NumericsError,
    PluginError,
    StorageError,
    UnsoundError,
    UsageError,
)

__all__ = ["Ranks"]

_T = TypeVar("_T")
#: What a failure of another process is raised as, by its exit code.
_KINDS: dict[int, type[AdvdiffError]] = {
    kind.exit_code: kind
    for kind in (
        DataError, Interrupted, NumericsError, PluginError, StorageError, UnsoundError, UsageError,
    )
}  # fmt: skip


def _alone(text: str) -> list[str]:
    return [text]


@frozen(kw_only=True)
class Ranks:
    """The processes that work together, on one file system.

    Attributes:
        rank: Number of this process.
        world: How many there are.
        gather: Called by all of them in turn with a text each: returns all texts in order of rank,
            to all of them. Also serves as the barrier.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[str], list[str]] = _alone

    def agree(self, attempt: Callable[[], _T]) -> list[_T]:
        """Run `attempt` on every process; all get all results, or all raise.

        A process that failed raises its own error, the others that of the first one.

        Args:
            attempt: Its result must be JSON.
        """
        failure: BaseException | None = None
        try:
            note: dict[str, Any] = {"ok": attempt()}
        except Exception as error:
            failure, note = error, {"error": _describe(error)}
        notes = [json.loads(text) for text in self.gather(json.dumps(note))]
        if failure is not None:
            raise failure
        for rank, other in enumerate(notes):
            if "error" in other:
                raise _rebuild(rank, other["error"])
        return [other["ok"] for other in notes]

    def on_main(self, do: Callable[[], _T]) -> _T:
        """What `do` gives on the main process, as JSON, on every one; its failure is that of all.

        Args:
            do: Its result must be JSON.
        """
        found: list[Any] = self.agree(lambda: do() if self.rank == 0 else None)
        result: _T = found[0]
        return result


def _describe(error: BaseException) -> dict[str, Any]:
    if isinstance(error, AdvdiffError):
        kind = {"exit": error.exit_code, "code": error.code}
        return {**kind, "where": error.where, "message": error.message, "fix": error.fix}
    return {
        "exit": AdvdiffError.exit_code,
        "message": repr(error),
        "code": "",
        "where": "",
        "fix": "",
    }


def _rebuild(rank: int, note: dict[str, Any]) -> AdvdiffError:
    where = f"process {rank}: {note['where']}".removesuffix(": ")
    kind = _KINDS.get(note["exit"], AdvdiffError)
    return kind(note["message"], code=note["code"], where=where, fix=note["fix"])
