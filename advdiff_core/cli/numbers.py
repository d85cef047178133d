"""Numbers on the command line: ranges of seeds and labels."""

from __future__ import annotations

import re

from advdiff_core.errors import UsageError, escape

__all__ = ["DEFAULT", "parse_ranges", "ranges_text", "seeds_of"]

_PART = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
MAX_COUNT = 10_000_000
DEFAULT = 64


def parse_ranges(text: str, option: str) -> list[int]:
    """`0-63` or `3,7,10-12` as whole numbers; both ends of a range count.

    Args:
        text: What was given.
        option: Its option, for the message.

    Raises:
        UsageError: If it is no such text, or means more than ten million numbers.
    """
    parts = [_PART.fullmatch(part.strip()) for part in text.split(",")]
    spans = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    if len(spans) < len(parts) or any(last < first for first, last in spans):
        message = f"found {escape(text, limit=60)!r}, wanted whole numbers and ranges"
        raise UsageError(message, where=option, fix=f"write for example {option} 0-63")
    if sum(last - first + 1 for first, last in spans) > MAX_COUNT:
        message = f"{escape(text, limit=60)} are more than {MAX_COUNT:,} numbers"
        raise UsageError(message, where=option, fix="give smaller ranges, in several calls")
    return [value for first, last in spans for value in range(first, last + 1)]


def ranges_text(numbers: list[int]) -> str:
    """The shortest text that `parse_ranges` reads as these numbers, for example `0-63,70`."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ",".join(f"{low}-{high}" if low != high else str(low) for low, high in spans)


def seeds_of(seeds: str | None, num: int | None) -> list[int]:
    """The seeds that `--seeds` and `--num` together mean.

    Raises:
        UsageError: If the two contradict each other.
    """
    if seeds is None:
        return list(range(DEFAULT if num is None else num))
    found = parse_ranges(seeds, "--seeds")
    if num is not None and num != len(found):
        message = f"--num {num} and --seeds {seeds} ({len(found)} seeds) contradict each other"
        raise UsageError(message, where="advdiff sample", fix="leave out --num")
    return found
