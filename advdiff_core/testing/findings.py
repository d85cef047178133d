"""What a law says when a component breaks it. Free of torch and Hypothesis."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

__all__ = ["Finding", "LawBroken", "NotApplicable", "shown", "wrong"]

LONGEST = 200


class Finding(Exception):  # noqa: N818 - caught by the runner, which knows law, component, witness.
    """What a law found in a component.

    Args:
        found: What the component did.
        wanted: What its contract asks for.
        mend: What its author should do.
    """

    def __init__(self, found: str, wanted: str, mend: str) -> None:
        super().__init__(f"found {found}, wanted {wanted} - {mend}")
        self.found, self.wanted, self.mend = found, wanted, mend


class LawBroken(AssertionError):  # noqa: N818 - reads as the sentence it is.
    """A component breaks a law; the message is one line."""


class NotApplicable(unittest.SkipTest):
    """A law that says nothing about this component; pytest and Hypothesis treat it as a skip."""


def wrong(found: object, *, wanted: object, mend: str) -> Finding:
    """A finding, to be raised."""
    return Finding(shown(found, limit=3 * LONGEST), shown(wanted), mend)


def shown(value: object, *, limit: int = LONGEST) -> str:
    """A value as a message prints it: numbers short, everything on one line."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def witness_text(witness: Mapping[str, Any]) -> str:
    """The drawn values of a failing example."""
    return ", ".join(f"{name}={shown(value)}" for name, value in witness.items())
