"""Processes that write together: all of them succeed, or all of them report the same failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import frozen

from advdiff_core.errors import AdvdiffError, DataError, StorageError

__all__ = ["Ranks"]

_T = TypeVar("_T")


def _alone(text: str) -> list[str]:
    return [text]


@frozen(kw_only=True)
class Ranks:
    """The processes that save together, on one file system.

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
    kinds = {kind.exit_code: kind for kind in (DataError, StorageError)}
    where = f"process {rank}: {note['where']}".removesuffix(": ")
    kind = kinds.get(note["exit"], AdvdiffError)
    return kind(note["message"], code=note["code"], where=where, fix=note["fix"])
