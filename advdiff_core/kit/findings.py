"""What the examination of a plugin finds."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

__all__ = ["MOST", "Finding", "bad", "capped", "note", "ok"]

Status = Literal["ok", "note", "bad"]

#: Findings of one topic that are shown one by one.
MOST = 20


@frozen(kw_only=True)
class Finding:
    """One thing examined.

    Attributes:
        topic: What was looked at, one word.
        status: "ok", "note" (may stay as it is) or "bad".
        found: What was found.
        fix: The mend.
    """

    topic: str
    status: Status
    found: str
    fix: str = ""


def ok(topic: str, found: str) -> Finding:
    """Something that is as it should be."""
    return Finding(topic=topic, status="ok", found=found)


def note(topic: str, found: str, fix: str = "") -> Finding:
    """Something its author should know."""
    return Finding(topic=topic, status="note", found=found, fix=fix)


def bad(topic: str, found: str, fix: str) -> Finding:
    """Something to mend."""
    return Finding(topic=topic, status="bad", found=found, fix=fix)


def capped(findings: list[Finding]) -> list[Finding]:
    """At most `MOST` findings of one topic, and how many more there are."""
    rest = findings[MOST:]
    if not rest:
        return findings
    return [*findings[:MOST], bad(rest[0].topic, f"and {len(rest)} more", "mend these first")]
