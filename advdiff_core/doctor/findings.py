"""What the doctor finds, in words that may be shown to anyone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from attrs import evolve, frozen

from advdiff_core.errors import AdvdiffError

__all__ = ["Finding", "bad", "note", "ok", "scrubbed"]

Status = Literal["ok", "note", "bad"]

_USER = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(://[^\s?#'\"]+)[?#][^\s'\"]+")
#: `token=...`, `Authorization: Bearer ...`: what follows such a word is nobody's business.
_SECRET = re.compile(
    r"(?i)\b([\w-]*(?:token|secret|passw(?:or)?d|api[_-]?key|authorization)[\w-]*['\"]?\s*[=:]\s*"
    r"|bearer\s+)(?:bearer\s+)?['\"]?[^\s'\",;)]+"
)
#: Tokens that say themselves what they are.
_TOKEN = re.compile(r"\b(hf_|gh[pousr]_|github_pat_|pypi-|sk-|xox[abps]-|AKIA)[\w-]{8,}")


@frozen(kw_only=True)
class Finding:
    """One thing examined.

    Attributes:
        topic: What was looked at, one word.
        status: "ok", "note" (works, but you may want to know) or "bad".
        found: What was found.
        fix: What to do about it.
        exit_code: Exit code of the problem's family; 0 unless bad.
        traceback: Where a plugin failed; "" for other findings.
    """

    topic: str
    status: Status
    found: str
    fix: str = ""
    exit_code: int = 0
    traceback: str = ""

    def scrubbed(self) -> Finding:
        """The same without what a bug report must not hold."""
        return evolve(
            self, found=scrubbed(self.found), fix=scrubbed(self.fix),
            traceback=scrubbed(self.traceback),
        )  # fmt: skip


def ok(topic: str, found: str) -> Finding:
    """Nothing is wrong."""
    return Finding(topic=topic, status="ok", found=found)


def note(topic: str, found: str, fix: str = "") -> Finding:
    """It works, but one may want to know."""
    return Finding(topic=topic, status="note", found=found, fix=fix)


def bad(
    topic: str, found: str, fix: str, family: type[AdvdiffError], traceback: str = ""
) -> Finding:
    """Something is broken.

    Args:
        topic: What was looked at.
        found: What was found.
        fix: What to do about it.
        family: Error whose exit code it has.
        traceback: Where a plugin failed.
    """
    return Finding(
        topic=topic, status="bad", found=found, fix=fix, exit_code=family.exit_code,
        traceback=traceback,
    )  # fmt: skip


def scrubbed(text: str) -> str:
    """A text without the home folder, names and tokens in addresses, and other secrets."""
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"{re.escape(home)}(?=[/\\\s'\":,;)]|$)", "~", text)
    text = _USER.sub("***@", text)
    text = _QUERY.sub(r"\1?***", text)
    return _TOKEN.sub(r"\1***", _SECRET.sub(r"\1***", text))
